"""Linear layers, whole or in the slices of a tensor-parallel pretraining run.

Shapes: ``B`` batch, ``T`` length, ``I`` in_features, ``O`` out_features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama.model.config import LlamaConfig


def linear(config: LlamaConfig, inputs: int, outputs: int, bias: bool = False, sum_slices: bool = False) -> nn.Linear:
    """Return a linear layer, computed in ``config.pretraining_tp`` slices.

    Args:
        config: Config of the model.
        inputs: I.
        outputs: O.
        bias: Whether the layer has a bias.
        sum_slices: Slice the input and sum (row parallel) instead of slicing the output and concatenating (column
            parallel).

    Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
    """
    if config.pretraining_tp == 1:
        return nn.Linear(inputs, outputs, bias=bias)
    return SlicedLinear(inputs, outputs, bias, config.pretraining_tp, sum_slices)


class SlicedLinear(nn.Linear):
    """A linear layer computed in slices, which rounds as a tensor-parallel run does."""

    def __init__(self, inputs: int, outputs: int, bias: bool, slices: int, sum_slices: bool) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.slices = slices
        self.sum_slices = sum_slices

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Return the output of `torch.nn.Linear` up to rounding, (B, T, O)."""
        if not self.sum_slices:
            out = torch.cat([functional.linear(x_BTI, part) for part in self.weight.chunk(self.slices, dim=0)], dim=-1)
        else:
            parts = zip(x_BTI.chunk(self.slices, dim=-1), self.weight.chunk(self.slices, dim=1), strict=True)
            out = sum((functional.linear(x, part) for x, part in parts), start=x_BTI.new_zeros(()))
        return out if self.bias is None else out + self.bias
