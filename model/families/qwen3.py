"""Qwen 3: RMSNorm over each head of queries and keys; no biases unless ``attention_bias``; tied below 8B.

Source: Yang et al. 2025, arXiv:2505.09388.
"""

from __future__ import annotations

from dataclasses import dataclass

from bpe_llama.model.families.qwen2 import QwenConfig
from bpe_llama.model.family import HEAD_NORMS, Family, GGUFLayout, register
from bpe_llama.model.layers.attention import HeadNormAttention
from bpe_llama.model.llama import DecoderLayer


@dataclass(frozen=True)
class Qwen3Config(QwenConfig):
    """The fields of Qwen 3, with the defaults of transformers."""

    head_dim: int | None = 128
    model_type: str = "qwen3"


class Qwen3Layer(DecoderLayer):
    """A layer with normalized queries and keys."""

    attention_class = HeadNormAttention


register(
    Family(
        "qwen3",
        "Qwen3",
        Qwen3Config,
        Qwen3Layer,
        biases=("attention_bias",),
        gguf=GGUFLayout("qwen3", HEAD_NORMS, fixed={"attention_bias": False}),
    )
)
