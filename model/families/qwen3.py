"""Qwen 3: RMSNorm over each head of queries and keys; no biases unless ``attention_bias``; tied below 8B.

Source: Yang et al. 2025, arXiv:2505.09388.
"""

from __future__ import annotations

from dataclasses import dataclass

from bpe_llama.model.families.layer_types import UpperWindowConfig
from bpe_llama.model.family import HEAD_NORMS, Family, GGUFLayout, register
from bpe_llama.model.layers.attention import HeadNormAttention
from bpe_llama.model.llama import DecoderLayer


@dataclass(frozen=True)
class Qwen3Config(UpperWindowConfig):
    """The fields of Qwen 3, with the defaults of transformers."""

    vocab_size: int = 151_936
    intermediate_size: int = 22_016
    num_key_value_heads: int | None = 32
    head_dim: int | None = 128
    max_position_embeddings: int = 32_768
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
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
