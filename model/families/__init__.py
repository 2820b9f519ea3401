"""The model families whose ``config.json`` is read, one file each: what differs from LLaMA in transformers."""

from bpe_llama.model.families import llama, mistral, mixtral

FAMILIES = {family.name: family for family in (llama.FAMILY, mistral.FAMILY, mixtral.FAMILY)}
"""The families by ``model_type``."""
