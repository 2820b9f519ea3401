"""Qwen 1.5 and 2 with experts: attention as in Qwen 2; beside the chosen experts a gated one that all tokens share.

Source: Yang et al. 2024, arXiv:2407.10671, section 2.2.2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bpe_llama.model.config_values import check_flag, check_size
from bpe_llama.model.families.layer_types import FULL, SLIDING
from bpe_llama.model.families.qwen2 import Qwen2Config
from bpe_llama.model.families.sparse_layers import (
    EXPERT_MODULES,
    EXPERT_SIZE,
    SparseLayer,
    SparseLayersConfig,
    SparseMLP,
    default_expert_size,
)
from bpe_llama.model.family import Family, GGUFLayout, register
from bpe_llama.model.layers.mlp import MLP


@dataclass(frozen=True)
class Qwen2MoeConfig(Qwen2Config, SparseLayersConfig):  # in this order the defaults are Qwen 2's
    """The fields of Qwen 2 with experts, with the defaults of transformers.

    With ``use_sliding_window`` every second layer has the window, the first of them included, up to
    ``max_window_layers``; ``layer_types`` overrides that.
    """

    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 16
    num_local_experts: int | None = 60
    num_experts_per_tok: int = 4
    moe_intermediate_size: int = 1408
    shared_expert_intermediate_size: int = 5632
    qkv_bias: bool = True
    model_type: str = "qwen2_moe"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(check_size, "shared_expert_intermediate_size")
        self._check(check_flag, "qkv_bias")

    @property
    def attention_biases(self) -> tuple[bool, bool]:
        """Return whether queries, keys and values have biases, and that the attention output has none."""
        return self.qkv_bias, False

    def default_layer_types(self) -> list[str]:
        """Return the types of the layers of a file that does not state them."""
        layers = range(self.num_hidden_layers)
        return [
            SLIDING if self.use_sliding_window and layer % 2 == 0 and layer < self.max_window_layers else FULL
            for layer in layers
        ]


class SharedExpertMLP(SparseMLP):
    """A mixture of experts and, times the sigmoid of a gate, an expert that all tokens share."""

    def __init__(self, config: Qwen2MoeConfig) -> None:
        super().__init__(config)
        self.shared_expert = MLP(config, config.shared_expert_intermediate_size)
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the sum of the chosen experts' and the shared expert's weighted outputs, (B, T, D)."""
        shared_BTD: Tensor = self.shared_expert_gate(x_BTD).sigmoid() * self.shared_expert(x_BTD)
        return super().forward(x_BTD) + shared_BTD


class Qwen2MoeLayer(SparseLayer):
    """A layer with a mixture of experts and a shared expert, or an MLP."""

    experts_class = SharedExpertMLP


_SHARED_SIZE = "expert_shared_feed_forward_length"


def _read_gguf(fields: dict[str, Any], metadata: Mapping[str, Any], names: Collection[str]) -> None:
    fields["qkv_bias"] = "blk.0.attn_q.bias" in names


register(
    Family(
        "qwen2_moe",
        "Qwen2Moe",
        Qwen2MoeConfig,
        Qwen2MoeLayer,
        ignored=frozenset({"attention_bias"}),
        has_experts=True,
        gguf=GGUFLayout(
            "qwen2moe",
            EXPERT_MODULES
            | {
                "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
                "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
                "ffn_down_shexp": "mlp.shared_expert.down_proj",
                "ffn_up_shexp": "mlp.shared_expert.up_proj",
            },
            keys={EXPERT_SIZE: "moe_intermediate_size", _SHARED_SIZE: "shared_expert_intermediate_size"},
            absent={EXPERT_SIZE: default_expert_size, _SHARED_SIZE: lambda fields: fields["intermediate_size"]},
            fixed={"norm_topk_prob": False, "tie_word_embeddings": False},
            head_key=None,
            read=_read_gguf,
        ),
    )
)
