"""Gemma 2: Gemma with soft caps of attention scores and logits, norms around each block, every other window.

Source: Gemma Team 2024, arXiv:2408.00118.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from bpe_llama._core import shown
from bpe_llama.model.config_values import check_size
from bpe_llama.model.families.gemma import GGUF_FIXED, TANH_GELU, GemmaConfig, scaled_embedding, with_activation
from bpe_llama.model.families.layer_types import LayerTypesConfig, full_every
from bpe_llama.model.family import Family, GGUFLayout, register
from bpe_llama.model.layers.attention import Attention
from bpe_llama.model.layers.attention_backends import Visible
from bpe_llama.model.layers.logits import SoftCap
from bpe_llama.model.layers.norm import ZeroCenteredRMSNorm
from bpe_llama.model.llama import DecoderLayer


@dataclass(frozen=True)
class Gemma2Config(GemmaConfig, LayerTypesConfig):  # in this order the defaults are Gemma's
    """The fields of Gemma 2, with the defaults of transformers.

    A soft cap bounds values smoothly: ``cap * tanh(value / cap)``; None does not bound them.

    Raises:
        ValueError: Also if a soft cap is not positive, or ``hidden_size`` is no multiple of ``num_attention_heads``.
    """

    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    sliding_window: int | None = 4096
    query_pre_attn_scalar: int = 256
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0
    model_type: str = "gemma2"

    ACTIVATIONS = (TANH_GELU, "gelu", "silu", "swish")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(check_size, "query_pre_attn_scalar")
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            cap = getattr(self, name)
            if cap is None:
                continue
            if isinstance(cap, int | float) and cap <= 0:
                raise ValueError(f"{name} is {shown(cap)}; expected a positive number or null")
            self._fill_floats(name)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads "
                f"({self.num_attention_heads}), which transformers' {self.model_type} refuses"
            )

    def default_layer_types(self) -> list[str]:
        """Return the types of the layers of a file that does not state them: every other one has the window."""
        return full_every(2, self.num_hidden_layers)

    @property
    def query_scale(self) -> float:
        """Return the factor of queries beyond ``head_dim ** -0.5``."""
        return math.sqrt(self.head_size / self.query_pre_attn_scalar)


class SoftCappedAttention(Attention):
    """Attention with a soft cap of the scores."""

    def __init__(self, config: Gemma2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.softcap = config.attn_logit_softcapping

    def attend(self, query_BNTH: Tensor, key_BKSH: Tensor, value_BKSH: Tensor, visible: Visible) -> Tensor:
        """Return the attention output of capped scores, (B, N, T, H), by the backend."""
        return self.backend(query_BNTH, key_BKSH, value_BKSH, visible, self.dropout, self.softcap)


class Gemma2Layer(DecoderLayer):
    """A layer with a norm before and after attention, and before and after the MLP."""

    attention_class: ClassVar[type[Attention]] = SoftCappedAttention
    norm_class = ZeroCenteredRMSNorm

    def __init__(self, config: Gemma2Config, layer: int) -> None:
        super().__init__(config, layer)
        self.pre_feedforward_layernorm = self.norm_class(config.hidden_size, config.norm_eps)
        self.post_feedforward_layernorm = self.norm_class(config.hidden_size, config.norm_eps)

    def attention_branch(self, x_BTD: Tensor, *context: Any) -> Tensor:
        """Return what attention adds to the hidden states, (B, T, D)."""
        return self.post_attention_layernorm(super().attention_branch(x_BTD, *context))

    def mlp_branch(self, x_BTD: Tensor) -> Tensor:
        """Return what the MLP adds to the hidden states, (B, T, D)."""
        return self.post_feedforward_layernorm(self.feed_forward(self.pre_feedforward_layernorm(x_BTD)))


def capped_logits(config: Gemma2Config) -> SoftCap | None:
    """Return the soft cap of the logits; None if they have none."""
    cap = config.final_logit_softcapping
    return None if cap is None else SoftCap(cap)


def _prepare(values: Mapping[str, Any]) -> dict[str, Any]:
    prepared = with_activation(values, "hidden_activation", "hidden_act")
    if prepared.get("sliding_window_size") == prepared.get("sliding_window", 4096):  # in the first configs
        prepared.pop("sliding_window_size", None)
    return prepared


NORM_MODULES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""The norms of a layer in llama.cpp, and their modules."""


def read_scalar(
    layers_of_27b: int, fields: dict[str, Any], metadata: Mapping[str, Any], names: Collection[str]
) -> None:
    """Set ``query_pre_attn_scalar``, which llama.cpp knows by the number of layers: 27B has its own."""
    width = fields["hidden_size"] // fields["num_attention_heads"]
    fields["query_pre_attn_scalar"] = width if fields["num_hidden_layers"] == layers_of_27b else fields["head_dim"]


register(
    Family(
        "gemma2",
        "Gemma2",
        Gemma2Config,
        Gemma2Layer,
        embedding=scaled_embedding,
        logits=capped_logits,
        prepare=_prepare,
        biases=("attention_bias",),
        gguf=GGUFLayout(
            "gemma2",
            NORM_MODULES,
            keys={
                "attention.sliding_window": "sliding_window",
                "attn_logit_softcapping": "attn_logit_softcapping",
                "final_logit_softcapping": "final_logit_softcapping",
            },
            absent={
                "attention.sliding_window": 4096,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
            },
            fixed=GGUF_FIXED,
            norm_offset=1.0,
            window_pattern=2,
            read=partial(read_scalar, 46),
        ),
    )
)
