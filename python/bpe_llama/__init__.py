"""Byte-level BPE tokenizers, sampling, and LLaMA models."""

from bpe_llama._core import __version__
from bpe_llama.tokenizer import Tokenizer
from bpe_llama.training import WordCounts

__all__ = ["Tokenizer", "WordCounts", "__version__"]
