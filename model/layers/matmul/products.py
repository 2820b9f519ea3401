"""Matrix products of training on a CPU: by the faster of torch's two libraries, and in the faster dtype.

torch multiplies float32 matrices by MKL, which runs its AVX2 kernels on AMD's processors whatever they can do; oneDNN,
which torch uses for bfloat16, runs AVX-512 there. On a Zen 5 core oneDNN reaches 250 GFLOP/s and MKL 113; with AVX2
alone 130 and 114.

Without instructions for bfloat16 oneDNN emulates them: limited to AVX2 a product of 512 x 192 by 192 x 512 takes 6.7 ms
in bfloat16 and 1.1 ms in float32, conversions included; with AVX-512 but not its BF16 extension, 512 x 384 by
384 x 1,024 takes 5.1 and 2.2 ms. Intel's AVX-512 BF16 without AMX is slower than float32, too: 5.1 and 3.2 ms on
Emerald Rapids. The product of two bfloat16 numbers is exact in float32, so only sums may differ.

Shapes: ``M`` rows, ``I`` in_features, ``O`` out_features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from bpe_llama._core import has_avx512_bf16, simd_tier


@cache
def onednn_is_faster() -> bool:
    """Return whether this processor is AMD's and torch has oneDNN. A rule, not a timing: resumed runs need it."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not has_onednn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    with contextlib.suppress(OSError):  # not Linux
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text("ascii", "replace")
    return False


@cache
def bfloat16_is_slower() -> bool:
    """Return whether torch multiplies bfloat16 slower than float32 here, or would with what `BPE_LLAMA_SIMD` allows."""
    emulated = simd_tier() in ("portable", "avx2", "avx512")
    return emulated or (simd_tier() == "avx512_bf16" and not has_avx512_bf16())


def product(x_MI: Tensor, weight_OI: Tensor) -> Tensor:
    """Return ``x @ weight.T``, (M, O). It has no gradient of its own; strides are free.

    Example:
        >>> product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[11.]])
    """
    on_cpu = x_MI.device.type == "cpu"
    if x_MI.dtype == weight_OI.dtype == torch.bfloat16 and on_cpu and bfloat16_is_slower():
        with torch.autocast("cpu", enabled=False):  # it would round the operands again and emulate their product
            return product(x_MI.float(), weight_OI.float()).bfloat16()
    if x_MI.dtype == torch.float32 and on_cpu and onednn_is_faster() and x_MI.numel():
        return torch.ops.mkldnn._linear_pointwise(x_MI, weight_OI, None, "none", [], "")
    return x_MI @ weight_OI.T


class _Linear(torch.autograd.Function):
    """``x @ weight.T`` whose three products, forward and backward, are `product`."""

    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_MI, weight_OI)
        return product(x_MI, weight_OI)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_MO: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_MI, weight_OI = ctx.saved_tensors
        for_x = product(gradient_MO, weight_OI.T) if ctx.needs_input_grad[0] else None
        for_weight = product(gradient_MO.T, x_MI.T) if ctx.needs_input_grad[1] else None
        return for_x, for_weight


class _TrainingProducts(TorchFunctionMode):
    """Replaces `torch.nn.functional.linear` by `_Linear`, wherever a gradient is asked for and `product` is faster."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear and not kwargs and torch.is_grad_enabled() and in_training():
            x, weight, bias = args if len(args) == 3 else (*args, None)
            dtype = _product_dtype(x, weight)
            if dtype is not None and x.ndim > 1 and (x.requires_grad or weight.requires_grad):
                out = _Linear.apply(x.flatten(0, -2).to(dtype), weight.to(dtype)).unflatten(0, x.shape[:-1])
                return out if bias is None else out + bias.to(dtype)
        return func(*args, **(kwargs or {}))


def _product_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """Return the dtype in which torch would multiply, if `product` is faster in it."""
    if any(type(part.data) is not Tensor or part.device.type != "cpu" for part in (x, weight)):
        return None
    dtypes = {x.dtype, weight.dtype}
    if torch.is_autocast_enabled("cpu") and dtypes <= {torch.float32, torch.bfloat16}:
        dtypes = {torch.get_autocast_dtype("cpu")}
    if (dtypes == {torch.bfloat16} and bfloat16_is_slower()) or (dtypes == {torch.float32} and onednn_is_faster()):
        return dtypes.pop()
    return None


def training_products() -> AbstractContextManager[Any]:
    """Return a context in which layers with a gradient multiply by `product`, and use `bpe_llama.model.layers.fused`.

    Outside of it, and without a gradient, they compute what torch does, to the last bit. Within it results differ by
    rounding.

    Example:
        >>> layer, x = torch.nn.Linear(8, 4), torch.ones(2, 3, 8)
        >>> with training_products():
        ...     out = layer(x)
        >>> torch.allclose(out, layer(x))
        True
    """
    return contextlib.nullcontext() if torch.compiler.is_compiling() else _in_training()


@contextlib.contextmanager
def _in_training() -> Iterator[None]:
    in_float32 = not torch.is_autocast_enabled("cpu") and onednn_is_faster()
    is_outermost = _TRAINING.get() is None
    before = _TRAINING.set((_saved_tensors_hooks(),))
    try:
        replaces = is_outermost and (in_float32 or bfloat16_is_slower())
        with _TrainingProducts() if replaces else contextlib.nullcontext():
            yield
    finally:
        _TRAINING.reset(before)


_TRAINING: ContextVar[tuple[Any] | None] = ContextVar("training", default=None)
"""The `saved_tensors_hooks` with which `training_products` was entered; None outside of it."""


def _saved_tensors_hooks() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def in_training() -> bool:
    """Return whether the caller is within `training_products`, but not in a checkpoint that was begun within it.

    The caller of such a `torch.utils.checkpoint` computes again outside, and must compute the same.
    """
    return not torch.compiler.is_compiling() and _TRAINING.get() == (_saved_tensors_hooks(),)


def recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Return ``function(*arguments)``, computed again in the backward pass, by the same products, to save memory."""
    if torch.compiler.is_compiling():
        return checkpoint(function, *arguments, use_reentrant=False)
    training = in_training()

    def computed(*arguments: Any) -> Tensor:
        with training_products() if training else contextlib.nullcontext():
            return function(*arguments)

    return checkpoint(computed, *arguments, use_reentrant=False)
