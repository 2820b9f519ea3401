"""Element-wise parts of a layer in training on a CPU, forward and backward, each in one pass over memory.

PyTorch computes RMSNorm, its gradient, SwiGLU and RoPE by some forty operations, each of which reads and writes memory:
a sixth of a training step of a small model. Here `bpe_llama._core` computes them in float32.

Shapes: ``B`` batch, ``T`` length, ``N`` heads, ``H`` head_dim, ``R`` rotated features of a head, ``D`` hidden_size,
``I`` intermediate_size, ``M`` rows, ``V`` vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bpe_llama import _core
from bpe_llama.model.layers.matmul.products import in_training


def takes(*parts: Tensor) -> bool:
    """Return whether the tensors are float32 on a CPU with fused multiply-adds, and nothing is being compiled."""
    if torch.compiler.is_compiling() or _core.simd_tier() == "portable":  # multiply-adds in software are slow
        return False
    on_cpu = all(type(part.data) is Tensor and part.device.type == "cpu" for part in parts)
    return on_cpu and all(part.dtype == torch.float32 for part in parts)


def is_used(*parts: Tensor) -> bool:
    """Return whether `rms_norm`, `swiglu` and `rotate` are to be used: in training, and a gradient is asked for."""
    if not in_training() or not torch.is_grad_enabled() or not takes(*parts):
        return False
    return any(part.requires_grad for part in parts)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return ``x / sqrt(mean(x ** 2) + eps) * weight`` of the last axis, same shape.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.

    Example:
        >>> rms_norm(torch.tensor([[3.0, 3.0]]), torch.tensor([1.0, 10.0]), 0.0)
        tensor([[ 1., 10.]])
    """
    heads_last = x.ndim == 4 and x.transpose(1, 2).is_contiguous()
    return _RMSNorm.apply(_in_order(x, heads_last), weight, eps)


def swiglu(gate_BTI: Tensor, up_BTI: Tensor) -> Tensor:
    """Return ``silu(gate) * up``, same shape.

    Source: Shazeer 2020, arXiv:2002.05202, eq. 6.

    Example:
        >>> swiglu(torch.tensor([0.0, 100.0]), torch.tensor([1.0, 2.0]))
        tensor([  0., 200.])
    """
    return _SwiGLU.apply(gate_BTI.contiguous(), up_BTI.contiguous())


def rotate(x_BNTH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return heads whose features ``i`` and ``i + R / 2`` are rotated by the angles of their positions, same shape.

    Args:
        x_BNTH: Queries or keys; copied unless their memory is in the order (B, T, N, H), which that of the result is.
        cos: The cosines, (B or 1, T, R / 2), without gradient.
        sin: The sines.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34.

    Example:
        >>> rotate(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.zeros(1, 1, 1), torch.ones(1, 1, 1)).flatten()
        tensor([0., 1.])
    """
    return _Rotation.apply(x_BNTH, cos, sin, False)


def cross_entropy(
    logits_MV: Tensor, labels_M: Tensor, factors_M: Tensor, label_smoothing: float, z_loss: float, gradient: bool
) -> Tensor:
    """Return the sum of the rows' cross-entropies times their factors; with ``gradient`` it overwrites the logits.

    A row whose factor is 0 has the loss and the gradient 0, whatever its label is.

    Raises:
        ValueError: If a label is no class.

    Example:
        >>> logits, one = torch.zeros(1, 2), torch.ones(1)
        >>> cross_entropy(logits, torch.tensor([1]), one, 0.0, 0.0, gradient=True), logits
        (tensor(0.6931), tensor([[ 0.5000, -0.5000]]))
    """
    losses_M = torch.empty_like(factors_M)
    logits, labels, factors, losses = map(_array, (logits_MV, labels_M.contiguous(), factors_M, losses_M))
    threads = torch.get_num_threads()
    _core.cross_entropy(logits, labels, factors, losses, label_smoothing, z_loss, gradient, threads)
    return losses_M.sum()


def _array(tensor: Tensor) -> Any:
    return tensor.detach().numpy()


def _in_order(x: Tensor, heads_last: bool) -> Tensor:
    """Return ``x`` contiguous, or with heads after lengths in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2) if heads_last else x.contiguous()


def _rows(x: Tensor) -> Tensor:
    """Return a view of the vectors of the last axis in the order of memory: contiguous, or with heads after lengths."""
    in_order = x if x.is_contiguous() else x.transpose(1, 2)
    return in_order.view(x.numel() // x.shape[-1], x.shape[-1])


def _differentiable(
    definition: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients by PyTorch's operations, which have gradients in turn."""
    views = [part.view_as(part) for part in inputs]  # an input may depend on another, or be the same
    wanted = [view for view, is_needed in zip(views, needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(definition(*views), wanted, gradient, create_graph=True))
    return tuple(next(found) if is_needed else None for is_needed in needed)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        rows, out = _rows(x), torch.empty_like(x)
        scales = rows.new_empty(len(rows))
        weight = weight_D.detach().clone()  # FSDP could not free memory that NumPy has seen
        _core.rms_norm(_array(rows), _array(weight), eps, _array(_rows(out)), _array(scales), torch.get_num_threads())
        ctx.save_for_backward(x, weight_D, scales)
        ctx.eps, ctx.heads_last = eps, not x.is_contiguous()
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D, scales = ctx.saved_tensors
        if torch.is_grad_enabled():

            def definition(x: Tensor, weight_D: Tensor) -> Tensor:
                return weight_D * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + ctx.eps))

            return *_differentiable(definition, (x, weight_D), ctx.needs_input_grad[:2], gradient), None
        x, scales = _in_order(x, ctx.heads_last), scales.contiguous()  # `saved_tensors_hooks` may return other strides
        for_x, for_weight_D = torch.empty_like(x), torch.empty_like(weight_D)
        if gradient.stride() != x.stride():
            gradient = torch.empty_like(x).copy_(gradient)
        weight, to_x, to_weight = map(_array, (weight_D.detach().clone(), _rows(for_x), for_weight_D))
        given, x_rows, kept = map(_array, (_rows(gradient), _rows(x), scales))
        _core.rms_norm_backward(given, x_rows, weight, kept, to_x, to_weight, torch.get_num_threads())
        return for_x, for_weight_D, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_BTI: Tensor, up_BTI: Tensor) -> Tensor:
        ctx.save_for_backward(gate_BTI, up_BTI)
        out_BTI = torch.empty_like(gate_BTI)
        gate, up, out = (_array(part.view(-1)) for part in (gate_BTI, up_BTI, out_BTI))
        _core.swiglu(gate, up, out, torch.get_num_threads())
        return out_BTI

    @staticmethod
    def backward(ctx: Any, gradient_BTI: Tensor) -> tuple[Tensor | None, ...]:
        gate_BTI, up_BTI = ctx.saved_tensors
        if torch.is_grad_enabled():

            def definition(gate: Tensor, up: Tensor) -> Tensor:
                return functional.silu(gate) * up

            return _differentiable(definition, (gate_BTI, up_BTI), ctx.needs_input_grad, gradient_BTI)
        gate_BTI, up_BTI, gradient_BTI = (part.contiguous() for part in (gate_BTI, up_BTI, gradient_BTI))
        for_gate, for_up = torch.empty_like(gate_BTI), torch.empty_like(up_BTI)
        parts = gradient_BTI, gate_BTI, up_BTI, for_gate, for_up
        gradient, gate, up, to_gate, to_up = (_array(part.view(-1)) for part in parts)
        _core.swiglu_backward(gradient, gate, up, to_gate, to_up, torch.get_num_threads())
        return for_gate, for_up


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BNTH: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.back = back
        batch, heads, length, head_dim = x_BNTH.shape
        x = x_BNTH.transpose(1, 2).reshape(batch * length, heads * head_dim).contiguous()
        # Not a view: autograd forbids in-place operations on views that a function returns.
        strides = length * heads * head_dim, head_dim, heads * head_dim, 1
        out_BNTH = x.new_empty_strided(x_BNTH.shape, strides)
        cos_PR, sin_PR = (_array(part.flatten(0, 1).contiguous()) for part in (cos, sin))
        out = _array(out_BNTH.transpose(1, 2).view(x.shape))
        _core.rotate(_array(x), cos_PR, sin_PR, head_dim, back, out, torch.get_num_threads())
        return out_BNTH

    @staticmethod
    def backward(ctx: Any, gradient_BNTH: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _Rotation.apply(gradient_BNTH, cos, sin, not ctx.back), None, None, None
