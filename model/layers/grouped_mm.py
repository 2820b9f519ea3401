"""Rows sorted into groups times a matrix a group, as one operation: a compiler need not know how many rows a group has.

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
    """Return each row times the transposed matrix of its group, (P, O), differentiable once.

    The first ``counts_E[0]`` rows belong to the first group, and so on; the counts, int64, add up to P.

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
    """Return the sum of the outer products of each group's rows, E times (O, I): the gradients of the matrices."""
    counts = counts_E.tolist()
    return [y.T @ x for y, x in zip(torch.split(y_PO, counts), torch.split(x_PI, counts), strict=True)]


@grouped_linear.register_fake
def _(x_PI: Tensor, weights_OI: list[Tensor], counts_E: Tensor) -> Tensor:
    return x_PI.new_empty(x_PI.shape[0], weights_OI[0].shape[0])


@grouped_outer.register_fake
def _(y_PO: Tensor, x_PI: Tensor, counts_E: Tensor) -> list[Tensor]:
    return [y_PO.new_empty(y_PO.shape[1], x_PI.shape[1]) for _ in range(counts_E.shape[0])]


def _remember(ctx: Any, inputs: tuple[Tensor, list[Tensor], Tensor], output: Tensor) -> None:
    x_PI, weights_OI, counts_E = inputs
    ctx.save_for_backward(x_PI, counts_E, *weights_OI)


def _backward(ctx: Any, gradient_PO: Tensor) -> tuple[Tensor | None, list[Tensor] | list[None], None]:
    x_PI, counts_E, *weights_OI = ctx.saved_tensors
    needs_x, needs_weights, _ = ctx.needs_input_grad
    gradient_PO = gradient_PO.contiguous()
    of_x = grouped_linear(gradient_PO, [weight.T for weight in weights_OI], counts_E) if needs_x else None
    of_weights = grouped_outer(gradient_PO, x_PI, counts_E) if any(needs_weights) else [None] * len(weights_OI)
    return of_x, of_weights, None


grouped_linear.register_autograd(_backward, setup_context=_remember)
