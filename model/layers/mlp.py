"""The feed-forward block, and its activations.

Shapes: ``B`` batch, ``T`` length, ``D`` hidden_size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.layers import fused
from bpe_llama.model.layers.linear import linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
}
"""The activations by the config's ``hidden_act``."""


class MLP(nn.Module):
    """A gated block: ``down_proj(activation(gate_proj(x)) * up_proj(x))``; LLaMA's activation is SiLU (SwiGLU).

    Args:
        config: Config of the model.
        intermediate_size: Features between the projections; by default the config's.

    Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
    """

    matrices: ClassVar[tuple[str, str, str]] = ("gate_proj", "up_proj", "down_proj")

    def __init__(self, config: LlamaConfig, intermediate_size: int | None = None) -> None:
        super().__init__()
        intermediate = config.intermediate_size if intermediate_size is None else intermediate_size
        self.gate_proj = linear(config, config.hidden_size, intermediate, config.mlp_bias)
        self.up_proj = linear(config, config.hidden_size, intermediate, config.mlp_bias)
        self.down_proj = linear(config, intermediate, config.hidden_size, config.mlp_bias, sum_slices=True)
        self.activation = ACTIVATIONS[config.hidden_act]

    @property
    def input_linears(self) -> list[nn.Linear]:
        """Return the linear layers that compute, side by side, gate and up."""
        return [self.gate_proj, self.up_proj]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the output, same shape and dtype as the input."""
        return self.down_proj(self._gated(x_BTD))

    def _gated(self, x_BTD: Tensor) -> Tensor:
        gate_BTI: Tensor = self.gate_proj(x_BTD)
        up_BTI: Tensor = self.up_proj(x_BTD)
        if self.activation is functional.silu and fused.is_used(gate_BTI, up_BTI):
            return fused.swiglu(gate_BTI, up_BTI)
        gate_BTI = self.activation(gate_BTI)  # frees what it replaces
        return gate_BTI * up_BTI
