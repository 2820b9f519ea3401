"""Linear layers with a quantized weight; activations keep their dtype.

Shapes: ``M`` rows of input, ``I`` in_features, ``O`` out_features, ``Q`` groups of a row.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama._core import Linear, has_avx512
from bpe_llama.model.device import HAS_TRITON

GROUP_SIZES = (32, 64, 128, 256)
"""The weights of int4 that may share a scale."""
PACKED_ROWS = 32
"""The most rows of input for which the packed kernel beats dequantization and one matrix product without AVX-512."""
CUDA_ROWS = 512
"""The same for CUDA's kernels: an H200 takes half of the time of the latter or less (bench/results/cuda.md)."""


class QuantizedLinear(nn.Module):
    """A linear layer with a quantized weight: the base class of all formats.

    The quantized tensors are buffers: they are saved and moved with the model, and not trained. Gradients flow to the
    input, so adapters can be trained (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)

    def dequantized(self) -> Tensor:
        """Return the dequantized weight, float32 (O, I)."""
        raise NotImplementedError

    def most_rows(self) -> int:
        """Return the most rows of input for which `product` is faster than dequantization, on the weight's device."""
        return PACKED_ROWS

    def product(self, x_MI: Tensor) -> Tensor | None:
        """Return the product with the quantized weight, (M, O), or None if there is no kernel for it."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x @ weight.T + bias`` in the dtype of ``x``, (..., O)."""
        x_MI = x.reshape(-1, self.in_features)
        needs_grad = torch.is_grad_enabled() and x.requires_grad
        out = None if needs_grad or len(x_MI) > self.most_rows() else self.product(x_MI)
        if out is None:
            out = functional.linear(x_MI, self.dequantized().to(x.dtype))
        out = out.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        """Return the text that ``print(model)`` shows for this layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def is_readable(tensor: Tensor) -> bool:
    """Return whether the Rust kernels can read a tensor in place: it is contiguous and aligned."""
    return tensor.is_contiguous() and tensor.data_ptr() % tensor.element_size() == 0


def readable(tensor: Tensor) -> Tensor:
    """Return the tensor itself if `is_readable`, else a copy that is.

    Example:
        >>> whole = torch.zeros(4)
        >>> readable(whole) is whole, readable(whole[::2]).stride()
        (True, (1,))
    """
    return tensor if is_readable(tensor) else tensor.clone(memory_format=torch.contiguous_format)


class PackedLinear(QuantizedLinear):
    """A quantized layer whose weight the Rust kernels read in place on the CPU; they compute in float32."""

    core_dtype: torch.dtype
    """The dtype of scales that the Rust kernels read in place."""
    group_size = 0
    """Group size: the weights of a row that share a scale; 0 if all do."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self._kernel: tuple[tuple[int, int] | None, Linear] | None = None

    def stored(self) -> tuple[Tensor, Tensor]:
        """Return the quantized weight and its scales."""
        raise NotImplementedError

    def is_shared(self) -> bool:
        """Return whether `packed_matrix` shares the layer's memory: False if a cast changed the scales' dtype."""
        stored = self.stored()
        return stored[1].dtype == self.core_dtype and all(map(is_readable, stored))

    def packed_matrix(self) -> tuple[Any, Any]:
        """Return the quantized weight and its scales as NumPy arrays for `bpe_llama._core.Linear`."""
        weight, scales = map(readable, self.stored())
        scales = scales.to(self.core_dtype)
        return weight.numpy(), (scales if scales.dtype == torch.float32 else scales.view(torch.uint16)).numpy()

    def most_rows(self) -> int:
        """Return no limit on a CPU with AVX-512, else `PACKED_ROWS`, or `CUDA_ROWS` on CUDA."""
        device = self.stored()[0].device.type
        if device == "cuda":
            return CUDA_ROWS
        return sys.maxsize if has_avx512() and device == "cpu" else PACKED_ROWS

    def product(self, x_MI: Tensor) -> Tensor | None:
        """Return the product with the quantized weight, (M, O): float32 on the CPU, the input's dtype on CUDA."""
        if x_MI.device.type != "cpu":
            return self._product_on_cuda(x_MI)
        weight, scales = self.stored()
        addresses = (weight.data_ptr(), scales.data_ptr()) if self.is_shared() else None
        if self._kernel is None or addresses is None or self._kernel[0] != addresses:
            self._kernel = addresses, Linear([self.packed_matrix()])
        out_MO = torch.empty(len(x_MI), self.out_features, device="cpu", dtype=torch.float32)
        x_MI = x_MI.detach().float().contiguous()
        self._kernel[1].multiply(x_MI.numpy(), out_MO.numpy(), num_threads=torch.get_num_threads())
        return out_MO

    def _product_on_cuda(self, x_MI: Tensor) -> Tensor | None:
        supported = x_MI.device.type == "cuda" and x_MI.dtype in (torch.float32, torch.bfloat16) and HAS_TRITON
        if not supported or torch.compiler.is_compiling():  # torch.compile fuses the dequantization itself
            return None
        from bpe_llama.model.quantization.triton_matmul import TritonMatmul

        weight, scale = self.stored()
        out_MO = x_MI.new_empty(len(x_MI), self.out_features)
        with torch.cuda.device_of(x_MI):  # type: ignore[no-untyped-call]
            TritonMatmul(weight, x_MI.dtype, scale=scale, group=self.group_size).into(x_MI.contiguous(), out_MO)
        return out_MO

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kernel": None}  # a copy has its own weights


class Int8Linear(PackedLinear):
    """An int8 weight with one float32 scale per row, symmetric."""

    weight: Tensor
    scale: Tensor
    core_dtype = torch.float32

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight_OI = linear.weight.detach().float()
        scale_O = weight_OI.abs().amax(1).clamp(min=1e-12) / 127
        self.register_buffer("weight", (weight_OI / scale_O[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale_O)

    def dequantized(self) -> Tensor:
        """Return the dequantized weight, float32 (O, I)."""
        return self.weight.float() * self.scale.float()[:, None]

    def stored(self) -> tuple[Tensor, Tensor]:
        """Return the weight, int8 (O, I), and the scales (O,)."""
        return self.weight, self.scale


class Int4Linear(PackedLinear):
    """A 4-bit weight with a bfloat16 scale and zero point per group: ``(code - 8) * scale + zero``.

    Raises:
        ValueError: If the group size is not 32, 64, 128 or 256, or does not divide the input.
    """

    packed: Tensor
    scale_and_zero: Tensor
    core_dtype = torch.bfloat16

    def __init__(self, linear: nn.Linear, group_size: int = 64) -> None:
        super().__init__(linear)
        check_group_size(group_size, self.in_features, f"{self.in_features}")
        self.group_size = group_size
        weight_OQI = linear.weight.detach().float().view(self.out_features, -1, group_size)
        low, high = weight_OQI.amin(-1), weight_OQI.amax(-1)
        scale_OQ = ((high - low) / 15).clamp(min=1e-12).to(torch.bfloat16).float()
        zero_OQ = (low + 8 * scale_OQ).to(torch.bfloat16).float()  # the value of code 8
        codes = ((weight_OQI - zero_OQ[..., None]) / scale_OQ[..., None]).round().add(8).clamp(0, 15)
        codes_OI = codes.view(self.out_features, self.in_features).to(torch.uint8)
        self.register_buffer("packed", codes_OI[:, ::2] | codes_OI[:, 1::2] << 4)
        self.register_buffer("scale_and_zero", torch.stack([scale_OQ, zero_OQ], dim=-1).to(torch.bfloat16))

    def codes(self) -> Tensor:
        """Return the 4-bit codes, 0 to 15, uint8 (O, I)."""
        return torch.stack([self.packed & 15, self.packed >> 4], dim=-1).flatten(1)

    def dequantized(self) -> Tensor:
        """Return the dequantized weight, float32 (O, I)."""
        scale_OQ1, zero_OQ1 = self.scale_and_zero.float()[..., None].unbind(2)
        codes_OQI = self.codes().view(self.out_features, -1, self.group_size).float()
        return ((codes_OQI - 8) * scale_OQ1 + zero_OQ1).view(self.out_features, self.in_features)

    def stored(self) -> tuple[Tensor, Tensor]:
        """Return the packed codes, uint8 (O, I / 2), and the scales and zero points, (O, Q, 2)."""
        return self.packed, self.scale_and_zero


class Float8Linear(QuantizedLinear):
    """A float8 weight, e4m3 for precision or e5m2 for range, with one scale per row or per matrix.

    On CUDA devices of compute capability 8.9 or later the product is `torch._scaled_mm`, and the input is rounded to
    float8, too; elsewhere the weight is dequantized.

    Source: Micikevicius et al. 2022, arXiv:2209.05433.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, dtype: torch.dtype = torch.float8_e4m3fn, per_row: bool = True) -> None:
        super().__init__(linear)
        weight_OI = linear.weight.detach().float()
        maximum = weight_OI.abs().amax(1, keepdim=True) if per_row else weight_OI.abs().amax().view(1, 1)
        scale = maximum.clamp(min=1e-12) / torch.finfo(dtype).max
        self.register_buffer("weight", (weight_OI / scale).to(dtype))
        self.register_buffer("scale", scale)

    def dequantized(self) -> Tensor:
        """Return the dequantized weight, float32 (O, I)."""
        return self.weight.float() * self.scale.float()

    def most_rows(self) -> int:
        """Return no limit."""
        return sys.maxsize

    def product(self, x_MI: Tensor) -> Tensor | None:
        """Return the float8 product, bfloat16 (M, O), or None where the device or the weight has none."""
        if x_MI.device.type != "cuda" or torch.cuda.get_device_capability(x_MI.device) < (8, 9):
            return None
        is_cast = self.weight.dtype.itemsize > 1  # by `model.float()`, which keeps the values
        if is_cast or self.in_features % 16 or self.out_features % 16:
            return None
        return scaled_product(x_MI, self.weight, self.scale.float())


def scaled_product(x_MI: Tensor, weight_OI: Tensor, scale: Tensor) -> Tensor:
    """Return ``x @ (weight * scale).T`` by `torch._scaled_mm`, bfloat16 (M, O); the input is rounded to e4m3.

    Args:
        x_MI: Any float dtype.
        weight_OI: float8; on CUDA O and I are multiples of 16.
        scale: float32, (O, 1) or (1, 1). The input is scaled per row or as a whole likewise.
    """
    magnitude_MI = x_MI.float().abs()
    maximum = magnitude_MI.amax(1, keepdim=True) if scale.numel() > 1 else magnitude_MI.amax().view(1, 1)
    x_scale = maximum.clamp(min=1e-12) / torch.finfo(torch.float8_e4m3fn).max
    x8_MI = (x_MI.float() / x_scale).to(torch.float8_e4m3fn)
    if scale.numel() == 1 or weight_OI.dtype == torch.float8_e4m3fn:
        return torch._scaled_mm(x8_MI, weight_OI.t(), scale_a=x_scale, scale_b=scale.t(), out_dtype=torch.bfloat16)
    # CUDA's kernel supports row scales with e4m3 weights alone: for e5m2 the product is scaled afterwards.
    one = torch.ones((), device=x_MI.device)
    product_MO = torch._scaled_mm(x8_MI, weight_OI.t(), scale_a=one, scale_b=one, out_dtype=torch.float32)
    return (product_MO * x_scale * scale.t()).to(torch.bfloat16)


def check_group_size(group_size: int, inputs: int, divided: str) -> None:
    """Check a group size of int4.

    Args:
        group_size: The weights that share a scale.
        inputs: The inputs of the layer, of which it is a divisor.
        divided: What an error calls them.

    Raises:
        ValueError: If it is not one of `GROUP_SIZES`, or does not divide the inputs.
    """
    if group_size not in GROUP_SIZES or inputs % group_size:
        raise ValueError(f"group_size is {group_size}; expected 32, 64, 128 or 256, and a divisor of {divided}")
