"""Grouped matrix product as one custom operation: `torch.compile` need not know how many rows each group has.

Shapes: ``P`` rows, ``I`` inputs, ``O`` outputs, ``E`` groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@torch.library.custom_op(
    "bpe_llama::grouped_linear", mutates_args=(), schema="(Tensor x, Tensor[] weights, Tensor counts) -> Tensor"
)
def grouped_linear(x_PI: Tensor, weights_OI: list[Tensor], counts_E: Tensor) -> Tensor:
    """Return each row times the transposed matrix of its group, (P, O); it is differentiable once.

    Args:
        x_PI: Rows sorted by group.
        weights_OI: E matrices.
        counts_E: int64, the rows of each group; their sum is P.

    Example:
        >>> grouped_linear(torch.ones(3, 1), [torch.ones(2, 1), -torch.ones(2, 1)], torch.tensor([1, 2])).tolist()
        [[1.0, 1.0], [-1.0, -1.0], [-1.0, -1.0]]
    """
    parts = torch.split(x_PI, counts_E.tolist())
    return torch.cat([functional.linear(part, weight) for part, weight in zip(parts, weights_OI, strict=True)])


@torch.library.custom_op(
    "bpe_llama::grouped_outer", mutates_args=(), schema="(Tensor y, Tensor x, Tensor counts) -> Tensor[]"
)
def grouped_outer(y_PO: Tensor, x_PI: Tensor, counts_E: Tensor) -> list[Tensor]:
    """Return the gradients of the matrices, E times (O, I): for each group the sum of its rows' outer products."""
    counts = counts_E.tolist()
    return [y.T @ x for y, x in zip(torch.split(y_PO, counts), torch.split(x_PI, counts), strict=True)]


@grouped_linear.register_fake
def _(x_PI: Tensor, weights_OI: list[Tensor], counts_E: Tensor) -> Tensor:
    return x_PI.new_empty(x_PI.shape[0], weights_OI[0].shape[0])


@grouped_outer.register_fake
def _(y_PO: Tensor, x_PI: Tensor, counts_E: Tensor) -> list[Tensor]:
    return [y_PO.new_empty(y_PO.shape[1], x_PI.shape[1]) for _ in range(counts_E.shape[0])]


def _setup_context(ctx: Any, inputs: tuple[Tensor, list[Tensor], Tensor], output: Tensor) -> None:
    x_PI, weights_OI, counts_E = inputs
    ctx.save_for_backward(x_PI, counts_E, *weights_OI)


def _backward(ctx: Any, gradient_PO: Tensor) -> tuple[Tensor | None, list[Tensor] | list[None], None]:
    x_PI, counts_E, *weights_OI = ctx.saved_tensors
    needs_x, needs_weights, _ = ctx.needs_input_grad
    gradient_PO = gradient_PO.contiguous()
    x_gradient = grouped_linear(gradient_PO, [weight.T for weight in weights_OI], counts_E) if needs_x else None
    weight_gradients = grouped_outer(gradient_PO, x_PI, counts_E) if any(needs_weights) else [None] * len(weights_OI)
    return x_gradient, weight_gradients, None


grouped_linear.register_autograd(_backward, setup_context=_setup_context)
