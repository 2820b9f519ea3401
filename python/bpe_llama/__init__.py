"""Byte-level BPE tokenizers, sampling, and LLaMA models."""

from bpe_llama._core import __version__

__all__ = ["__version__"]
