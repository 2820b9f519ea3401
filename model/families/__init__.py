"""The families that are built on LLaMA, one file each: the config keys and the modules in which it differs.

Importing this package fills `bpe_llama.model.family.FAMILIES`.
"""

from bpe_llama.model.families import cohere, cohere2, granite, llama, mistral, mixtral, phi3, qwen3, smollm3, stablelm

__all__ = ["cohere", "cohere2", "granite", "llama", "mistral", "mixtral", "phi3", "qwen3", "smollm3", "stablelm"]
