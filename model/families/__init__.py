"""The families that are built on LLaMA, one file each: the config keys and the modules in which it differs.

Importing this package fills `bpe_llama.model.family.FAMILIES`.
"""

from bpe_llama.model.families import gemma, gemma2, gemma3, llama, mistral, mixtral, qwen3

__all__ = ["gemma", "gemma2", "gemma3", "llama", "mistral", "mixtral", "qwen3"]
