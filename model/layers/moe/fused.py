"""The experts of a mixture with the weights of all in one tensor, as Llama 4 stores them.

Shapes: ``P`` rows (pairs of a token and an expert), ``D`` hidden_size, ``I`` features between the projections, ``E``
experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama.model.layers.matmul.grouped import grouped_linear


class FusedExperts(nn.Module):
    """SwiGLU experts: ``gate_up_proj`` (E, D, 2 I), gate first, and ``down_proj`` (E, I, D).

    Under `torch.compile` the products of all experts are one operation, without a graph break.

    Args:
        experts: E.
        width: D.
        inner: I.

    Example:
        >>> experts = FusedExperts(2, 4, 8)
        >>> experts(torch.zeros(3, 4), torch.tensor([0, 1, 1])).shape, len(experts)
        (torch.Size([3, 4]), 2)
    """

    def __init__(self, experts: int, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(experts, width, 2 * inner))
        self.down_proj = nn.Parameter(torch.empty(experts, inner, width))

    def __len__(self) -> int:
        return self.gate_up_proj.shape[0]

    @property
    def inputs(self) -> tuple[int, int]:
        """Return the inputs of both products, D and I."""
        return self.gate_up_proj.shape[1], self.down_proj.shape[1]

    def forward(self, x_PD: Tensor, chosen_P: Tensor) -> Tensor:
        """Return the output of each row's expert, (P, D).

        Args:
            x_PD: Rows sorted by expert.
            chosen_P: int64, the expert of each row.
        """
        # Indexing would give each expert a gradient of the size of all.
        first, second = self.gate_up_proj.unbind(0), self.down_proj.unbind(0)
        if not torch.compiler.is_compiling():
            counts = chosen_P.bincount(minlength=len(self)).tolist()
            parts = zip(torch.split(x_PD, counts), first, second, strict=True)
            return torch.cat([_gated(part @ gate_up) @ down for part, gate_up, down in parts if len(part)])
        device = x_PD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_PD.dtype
        counts_E = (chosen_P[:, None] == torch.arange(len(self), device=x_PD.device)).sum(0)
        products = [[weight.mT.to(dtype) for weight in weights] for weights in (first, second)]
        return grouped_linear(_gated(grouped_linear(x_PD.to(dtype), products[0], counts_E)), products[1], counts_E)

    def split(self, convert: Callable[[nn.Linear], nn.Module]) -> SplitExperts:
        """Return the same experts as linear layers, each converted as soon as it is copied."""
        pairs = zip(self.gate_up_proj.detach(), self.down_proj.detach(), strict=True)
        split = SplitExperts(SplitExpert(*(convert(_linear(weight)) for weight in pair)) for pair in pairs)
        return split.train(self.training)


class SplitExpert(nn.Module):
    """One of `SplitExperts`."""

    def __init__(self, gate_up_proj: nn.Module, down_proj: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj

    def forward(self, x_PD: Tensor) -> Tensor:
        """Return the output, same shape and dtype as the input."""
        return self.down_proj(_gated(self.gate_up_proj(x_PD)))


class SplitExperts(nn.ModuleList):
    """What `FusedExperts` become when they are quantized: linear layers for each expert.

    Under `torch.compile` each expert processes all rows, and a mask selects the results.
    """

    def forward(self, x_PD: Tensor, chosen_P: Tensor) -> Tensor:
        """Return the output of each row's expert, (P, D); for the arguments see `FusedExperts`."""
        if torch.compiler.is_compiling():
            out_PD = torch.zeros_like(x_PD)
            for number, expert in enumerate(self):
                out_PD = torch.where((chosen_P == number)[:, None], expert(x_PD), out_PD)
            return out_PD
        parts = torch.split(x_PD, chosen_P.bincount(minlength=len(self)).tolist())
        return torch.cat([expert(part) for expert, part in zip(self, parts, strict=True) if len(part)])

    def fused(self) -> FusedExperts:
        """Return the experts with the weights of all in one tensor; their layers must be plain ones."""
        first, second = (
            torch.stack([getattr(expert, name).weight.detach().mT for expert in self])
            for name in ("gate_up_proj", "down_proj")
        )
        with torch.device("meta"):
            fused = FusedExperts(len(self), second.shape[2], second.shape[1])
        fused.gate_up_proj, fused.down_proj = nn.Parameter(first), nn.Parameter(second)
        return fused.train(self.training)


def _gated(x_PI: Tensor) -> Tensor:
    gate_PI, up_PI = x_PI.chunk(2, dim=-1)
    return functional.silu(gate_PI) * up_PI


def _linear(weight_IO: Tensor) -> nn.Linear:
    inputs, outputs = weight_IO.shape
    linear = nn.Linear(inputs, outputs, bias=False, device="meta")
    linear.weight = nn.Parameter(weight_IO.mT.contiguous(), requires_grad=False)
    return linear


def fused_weights(model: nn.Module) -> list[str]:
    """Return the paths of the weights of `FusedExperts`, quantized or not."""
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, FusedExperts | SplitExperts)
        for name in ("gate_up_proj", "down_proj")
    ]
