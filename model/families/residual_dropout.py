"""Layers with residual dropout, as Phi-3 and Seed-OSS have them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from bpe_llama.model.llama import DecoderLayer


class ResidualDropoutLayer(DecoderLayer):
    """A layer that drops features of what attention and MLP add to the hidden states, in training.

    The config has their probability as ``residual_dropout``.
    """

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config, layer)
        self.residual_dropout: float = config.residual_dropout

    def attention_branch(self, x_BTD: Tensor, *context: Any) -> Tensor:
        """Return what attention adds to the hidden states, (B, T, D)."""
        return functional.dropout(super().attention_branch(x_BTD, *context), self.residual_dropout, self.training)

    def mlp_branch(self, x_BTD: Tensor) -> Tensor:
        """Return what the MLP adds to the hidden states, (B, T, D)."""
        return functional.dropout(super().mlp_branch(x_BTD), self.residual_dropout, self.training)
