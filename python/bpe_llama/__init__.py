"""Byte-level BPE tokenizers, sampling, and LLaMA models."""

from bpe_llama._core import __version__
from bpe_llama.counts import WordCounts
from bpe_llama.sampling import Sampler
from bpe_llama.tokenizer import Tokenizer

__all__ = ["Sampler", "Tokenizer", "WordCounts", "__version__"]
