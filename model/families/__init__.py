"""The families that are built on LLaMA, one file each: the config keys and the modules in which it differs.

Importing this package fills `bpe_llama.model.family.FAMILIES`.
"""

# ruff: noqa: F401 -- importing a family registers it
from bpe_llama.model.families import (
    cohere,
    cohere2,
    deepseek_v2,
    deepseek_v3,
    gemma,
    gemma2,
    gemma3,
    granite,
    llama,
    llama4,
    ministral,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    seed_oss,
    smollm3,
    stablelm,
)
