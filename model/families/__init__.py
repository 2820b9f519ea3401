"""The families that are built on LLaMA, one file each: the config keys and the modules in which it differs.

Importing this package fills `bpe_llama.model.family.FAMILIES`.
"""

from bpe_llama.model.families import llama, mistral, mixtral, qwen2, qwen2_moe, qwen3, qwen3_moe

__all__ = ["llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"]
