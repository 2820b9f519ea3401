"""Granite: constants that multiply embedding, attention scores, residual branches and logits.

Source: Yang et al. 2022, arXiv:2203.03466 (the constants); Granite team 2024,
https://github.com/ibm-granite/granite-3.0-language-models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_values import check_number
from bpe_llama.model.family import Family, GGUFLayout, register
from bpe_llama.model.layers.embedding import ScaledEmbedding
from bpe_llama.model.layers.logits import Scale
from bpe_llama.model.llama import DecoderLayer


@dataclass(frozen=True)
class GraniteConfig(LlamaConfig):
    """The fields of Granite, with the defaults of transformers.

    ``attention_multiplier`` replaces ``head_dim ** -0.5``, and logits are divided by ``logits_scaling``.
    """

    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    model_type: str = "granite"

    def __post_init__(self) -> None:
        super().__post_init__()
        multipliers = ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")
        self._check(check_number, *multipliers)
        if not self.logits_scaling:
            raise ValueError(f"logits_scaling is {self.logits_scaling}, which divides the logits; expected above 0")

    @property
    def query_scale(self) -> float:
        """Return the factor of queries beyond ``head_dim ** -0.5``."""
        return self.attention_multiplier * math.sqrt(self.head_size)


class GraniteEmbedding(ScaledEmbedding):
    """An embedding that is multiplied by a constant, which is not rounded to the dtype of the weights first."""

    def scaled(self, vectors: Tensor) -> Tensor:
        """Return vectors multiplied by the constant; those of adapters are, too."""
        return vectors * self.scale


class GraniteLayer(DecoderLayer):
    """A layer that multiplies the outputs of attention and MLP by ``residual_multiplier``."""

    def __init__(self, config: GraniteConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.residual_multiplier = config.residual_multiplier

    def attention_branch(self, x_BTD: Tensor, *context: Any) -> Tensor:
        """Return what attention adds to the hidden states, (B, T, D)."""
        return super().attention_branch(x_BTD, *context) * self.residual_multiplier

    def mlp_branch(self, x_BTD: Tensor) -> Tensor:
        """Return what the MLP adds to the hidden states, (B, T, D)."""
        return super().mlp_branch(x_BTD) * self.residual_multiplier


register(
    Family(
        "granite",
        "Granite",
        GraniteConfig,
        GraniteLayer,
        embedding=lambda config: GraniteEmbedding(config, config.embedding_multiplier),
        logits=lambda config: Scale(1 / config.logits_scaling),
        has_classifier=False,
        biases=("attention_bias", "mlp_bias"),
        has_window=False,
        gguf=GGUFLayout(
            "granite",
            keys={
                "embedding_scale": "embedding_multiplier",
                "attention.scale": "attention_multiplier",
                "residual_scale": "residual_multiplier",
                "logit_scale": "logits_scaling",
            },
            absent={
                "embedding_scale": 1.0,
                "attention.scale": lambda fields: fields["head_dim"] ** -0.5,
                "residual_scale": 1.0,
            },
            interleaved=True,
            head_key=None,
        ),
    )
)
