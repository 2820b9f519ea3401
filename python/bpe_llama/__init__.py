"""Byte-level BPE tokenizers, sampling, and LLaMA models."""

from bpe_llama._core import __version__
from bpe_llama.tokenizer import Tokenizer

__all__ = ["Tokenizer", "__version__"]
