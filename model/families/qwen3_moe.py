"""Qwen 3 with experts: attention as in Qwen 3, a mixture of experts instead of the MLP; a window is that of all layers.

Source: Yang et al. 2025, arXiv:2505.09388.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bpe_llama._core import shown
from bpe_llama.model.config_values import check_flag
from bpe_llama.model.families.sparse_layers import (
    EXPERT_MODULES,
    EXPERT_SIZE,
    SparseLayer,
    SparseLayersConfig,
    default_expert_size,
)
from bpe_llama.model.family import HEAD_NORMS, Family, GGUFLayout, register, without_constants
from bpe_llama.model.layers.attention import HeadNormAttention


@dataclass(frozen=True)
class Qwen3MoeConfig(SparseLayersConfig):
    """The fields of Qwen 3 with experts, with the defaults of transformers."""

    vocab_size: int = 151_936
    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_hidden_layers: int = 24
    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 32_768
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    model_type: str = "qwen3_moe"

    def __post_init__(self) -> None:
        self._check(check_flag, "use_sliding_window")
        if not self.use_sliding_window:
            object.__setattr__(self, "sliding_window", None)
        super().__post_init__()


class Qwen3MoeLayer(SparseLayer):
    """A layer with normalized queries and keys, and a mixture of experts or an MLP."""

    attention_class = HeadNormAttention


def _window(fields: dict[str, Any], values: Mapping[str, Any]) -> None:
    ignored = next((key for key in ("max_window_layers", "layer_types") if values.get(key)), None)
    if ignored and values.get("use_sliding_window") and fields.get("sliding_window", 4096) is not None:
        warnings.warn(
            f"{ignored} is {shown(values[ignored])}, but transformers' qwen3_moe does not read it: all layers attend "
            "to sliding_window tokens, and so they do here",
            stacklevel=6,
        )


register(
    Family(
        "qwen3_moe",
        "Qwen3Moe",
        Qwen3MoeConfig,
        Qwen3MoeLayer,
        prepare=partial(without_constants, use_qk_norm=True, qkv_bias=False, shared_expert_intermediate_size=0),
        read=_window,
        biases=("attention_bias",),
        has_experts=True,
        gguf=GGUFLayout(
            "qwen3moe",
            HEAD_NORMS | EXPERT_MODULES,
            keys={EXPERT_SIZE: "moe_intermediate_size"},
            absent={EXPERT_SIZE: default_expert_size},
            fixed={"norm_topk_prob": True, "attention_bias": False},
        ),
    )
)
