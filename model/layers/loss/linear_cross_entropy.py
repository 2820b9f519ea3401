"""The cross-entropy of a linear head. Its gradient is computed in the forward pass, a chunk of positions at a time.

Of the logits only those of one chunk are ever in memory, and the head is multiplied once: the softmax overwrites the
logits with their gradient, which is then multiplied by the weights and by the hidden states.

Shapes: ``M`` positions, ``C`` positions of a chunk, ``D`` hidden_size, ``V`` vocab_size.

Source: Hsu et al. 2024, arXiv:2410.10989, section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bpe_llama.model.layers import fused
from bpe_llama.model.layers.matmul.products import product

IGNORED = -100
"""The label of positions without loss (padding, prompts)."""

FEWEST_POSITIONS = 256
"""Positions of a chunk, at least: each chunk passes over all weights of the head and their gradient."""
CHUNK_LOGITS = 1 << 23
"""Logits of a chunk unless `FEWEST_POSITIONS` need more: 32 MiB of float32."""
BLOCK = 1 << 22
"""Numbers of a block of the head's weights on a CPU: 16 MiB, which malloc gives again without new pages."""


def linear_cross_entropy(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    labels_M: Tensor,
    *,
    divisor: Tensor | float | None = None,
    chunk_size: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Return the sum of the cross-entropies of ``hidden @ weight.T``, divided by ``divisor``.

    Args:
        hidden_MD: Any float dtype; products are computed in it, or in autocast's.
        weight_VD: The weights of the head.
        labels_M: int64; -100 is ignored.
        divisor: By default the number of labels that are not ignored.
        chunk_size: C; by default as many as have 2^23 logits, at least 256.
        label_smoothing: As in `torch.nn.functional.cross_entropy`.
        z_loss: Weight of the squared logarithm of the softmax's denominator, added to each cross-entropy.

    Returns:
        A scalar: float64 if the hidden states are, else float32. It is differentiable once.

    Source: Chowdhery et al. 2022, arXiv:2204.02311, section 5 (z-loss).

    Example:
        >>> hidden, weight = torch.zeros(2, 4), torch.zeros(8, 4)
        >>> linear_cross_entropy(hidden, weight, torch.tensor([3, -100])).item() == torch.tensor(8.0).log().item()
        True
    """
    if divisor is None:
        divisor = (labels_M != IGNORED).sum()
    positions = chunk_size or max(FEWEST_POSITIONS, CHUNK_LOGITS // weight_VD.shape[0])
    gradients = torch.is_grad_enabled() and hidden_MD.requires_grad, torch.is_grad_enabled() and weight_VD.requires_grad
    return _LinearCrossEntropy.apply(
        hidden_MD, weight_VD, labels_M, divisor, positions, label_smoothing, z_loss, gradients
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        labels_M: Tensor,
        divisor: Tensor | float,
        positions: int,
        label_smoothing: float,
        z_loss: float,
        gradients: tuple[bool, bool],
    ) -> Tensor:
        device, (vocab_size, width) = hidden_MD.device, weight_VD.shape
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else hidden_MD.dtype
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        x_MD, head_VD = hidden_MD.to(dtype), weight_VD.to(dtype)
        scale_M = (labels_M != IGNORED).to(exact) / divisor
        for_hidden = torch.zeros(hidden_MD.shape, dtype=exact, device=device) if gradients[0] else None
        total = torch.zeros((), dtype=exact, device=device)
        positions = max(1, min(positions, len(labels_M)))
        on_cpu = device.type == "cpu"
        columns = max(256, BLOCK // max(width, positions, 1)) if on_cpu else vocab_size
        blocks = [slice(start, start + columns) for start in range(0, vocab_size, columns)]
        for_weight = None
        if gradients[1] and not len(labels_M):
            for_weight = torch.zeros(weight_VD.shape, dtype=exact, device=device)
        elif gradients[1] and len(blocks) > 1:
            for_weight = torch.empty(weight_VD.shape, dtype=exact, device=device)
        buffer_CV = torch.empty(positions if len(blocks) > 1 else 0, vocab_size, dtype=exact, device=device)
        for start in range(0, len(labels_M), positions):
            chunk = slice(start, start + positions)
            x_CD = x_MD[chunk]
            if len(blocks) == 1:
                logits = product(x_CD, head_VD).to(exact)
            else:
                logits = buffer_CV[: len(x_CD)]
                for block in blocks:
                    logits[:, block] = product(x_CD, head_VD[block])
            total += _loss(logits, labels_M[chunk], scale_M[chunk], label_smoothing, z_loss, any(gradients))
            for block in blocks if any(gradients) else ():
                gradient = logits[:, block].to(dtype)
                if for_hidden is not None:
                    for_hidden[chunk] += product(gradient, head_VD[block].T)
                if gradients[1]:
                    part = product(gradient.T, x_CD.T)
                    if for_weight is None:
                        for_weight = part.to(exact)
                    elif start == 0:
                        for_weight[block] = part
                    else:
                        for_weight[block].add_(part)
        ctx.save_for_backward(
            None if for_hidden is None else for_hidden.to(hidden_MD.dtype),
            None if for_weight is None else for_weight.to(weight_VD.dtype),
        )
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # A multiplication by 1 would copy the gradient of the weights, often the largest tensor of a step.
        one = gradient.device.type == "cpu" and gradient.item() == 1
        scaled = [saved if saved is None or one else saved * gradient for saved in ctx.saved_tensors]
        return *scaled, *(None,) * 6


def _loss(
    logits_CV: Tensor, labels_C: Tensor, scale_C: Tensor, label_smoothing: float, z_loss: float, gradient: bool
) -> Tensor:
    """Return the sum of the scaled losses of a chunk's positions; with ``gradient`` it overwrites the logits."""
    if fused.takes(logits_CV, scale_C):
        return fused.cross_entropy(logits_CV, labels_C, scale_C, label_smoothing, z_loss, gradient)
    labels_C1 = labels_C.clamp(min=0)[:, None]
    largest_C, probabilities_CV = logits_CV.amax(-1), logits_CV.softmax(-1)
    log_sum_C = largest_C - probabilities_CV.amax(-1).log()  # the largest probability is 1 / sum(exp(x - largest))
    loss_C = log_sum_C - (1 - label_smoothing) * logits_CV.gather(1, labels_C1)[:, 0]
    if label_smoothing:
        loss_C -= label_smoothing * logits_CV.mean(-1)
    slope_C = scale_C
    if z_loss:
        loss_C += z_loss * log_sum_C.square()
        slope_C = scale_C * (1 + 2 * z_loss * log_sum_C)
    if gradient:
        torch.mul(probabilities_CV, slope_C[:, None], out=logits_CV)
        if label_smoothing:
            logits_CV -= scale_C[:, None] * (label_smoothing / logits_CV.shape[1])
        logits_CV.scatter_add_(1, labels_C1, scale_C[:, None] * (label_smoothing - 1))
    return torch.where(scale_C == 0, 0, loss_C * scale_C).sum()
