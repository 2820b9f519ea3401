"""Weight-only quantization of linear layers; activations keep their dtype.

| kind | weight | scale |
|---|---|---|
| ``int8`` | int8, symmetric | one per row |
| ``int4`` | 4 bits, two per byte | scale and zero point per group of a row |
| ``float8_e4m3``, ``float8_e5m2`` | float8 | one per row, or one per matrix |

Shapes: ``M`` rows of input, ``I`` in_features, ``O`` out_features, ``Q`` groups of a row.

Example:
    >>> from bpe_llama.model import LlamaConfig, LlamaForCausalLM
    >>> from bpe_llama.model.quantization import quantize
    >>> config = LlamaConfig(vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
    ...                      num_attention_heads=2)
    >>> model = quantize.quantize(LlamaForCausalLM(config), "int4")
    >>> type(model.model.layers[0].mlp.up_proj).__name__
    'Int4Linear'
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama._arguments import boolean, instance, integer, iterator, one_of, wrong
from bpe_llama._core import Linear, has_avx512
from bpe_llama.model.device import HAS_TRITON
from bpe_llama.model.layers.moe.fused import FusedExperts, SplitExperts

AnyModel = TypeVar("AnyModel", bound=nn.Module)

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


def readable(tensor: Tensor) -> Tensor:
    """Return the tensor itself if the Rust kernels can read it in place, contiguous and aligned; else a copy that is.

    Example:
        >>> whole = torch.zeros(4)
        >>> readable(whole) is whole, readable(whole[::2]).stride()
        (True, (1,))
    """
    if tensor.is_contiguous() and tensor.data_ptr() % tensor.element_size() == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


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
        return stored[1].dtype == self.core_dtype and all(readable(tensor) is tensor for tensor in stored)

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
        _check_group_size(group_size, self.in_features, f"{self.in_features}")
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


KINDS = ("int8", "int4", "float8_e4m3", "float8_e5m2")
GROUP_SIZES = (32, 64, 128, 256)
"""The weights of int4 that may share a scale."""
SKIPPED = ("lm_head", "gate", "router", "shared_expert_gate", "score")
"""Last parts of the names of layers that are not quantized by default: heads and routers."""


def quantize(
    model: AnyModel,
    kind: str,
    group_size: int | None = None,
    per_row: bool = True,
    skip: Collection[str] = SKIPPED,
) -> AnyModel:
    """Quantize every linear layer of a model in place, and return the model.

    Experts with the weights of all in one tensor are split into linear layers, which are quantized, too. Layers that
    are quantized already stay as they are, so a second call may give the others another kind, such as an int8 head.

    Args:
        model: Any model of this package.
        kind: ``"int8"``, ``"int4"``, ``"float8_e4m3"`` or ``"float8_e5m2"``.
        group_size: Weights that share a scale, for int4: 32, 64, 128 or 256; by default 64, or 32 for all layers if 64
            does not divide the inputs of one. 32 is best for weights that were in groups of 32
            before, as in a GGUF file.
        per_row: For float8, one scale per row instead of one per matrix.
        skip: Last parts of the names of layers that are not quantized.

    Raises:
        ValueError: If the kind is unknown, the group size does not divide a layer's inputs, or adapters are merged into
            a layer. The model is then unchanged.

    Example:
        >>> from bpe_llama.model import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> model = quantize(quantize(LlamaForCausalLM(config), "int4"), "int8", skip=())
        >>> type(model.model.layers[0].mlp.down_proj).__name__, type(model.lm_head).__name__
        ('Int4Linear', 'Int8Linear')
    """
    instance("model", model, nn.Module, "a torch.nn.Module")
    one_of("kind", kind, KINDS)
    boolean("per_row", per_row)
    if group_size is not None and kind == "int4":
        integer("group_size", group_size)
    skip = tuple(iterator("skip", skip, "a list of names"))
    layers = _layers(model, skip)
    for path in layers:
        if getattr(model.get_submodule(path.rpartition(".")[0]), "unmerged", None) is not None:
            where = path.removesuffix(".base_layer")
            raise ValueError(f"adapters are merged into {where}; expected them unmerged or removed before quantization")
    if group_size is None:
        group_size = _group_size(layers)
    if kind == "int4":
        for path, layer in layers.items():
            for inputs in _inputs(layer):
                _check_group_size(group_size, inputs, f"{path}'s {inputs} inputs")
    for path, layer in layers.items():
        parent, _, last = path.rpartition(".")
        convert = partial(_quantized, kind=kind, group_size=group_size, per_row=per_row)
        setattr(
            model.get_submodule(parent),
            last,
            layer.split(convert) if isinstance(layer, FusedExperts) else convert(layer),
        )
    for weight in model.parameters():  # a view of the decoder's shared buffer would keep all of it in memory
        if weight.untyped_storage().nbytes() > weight.nbytes:
            weight.data = weight.data.clone()
    return model


def bytes_saved(model: nn.Module, kind: str, group_size: int | None = None) -> int:
    """Return how many bytes `quantize` with its defaults would save; the model may be on the meta device.

    Example:
        >>> bytes_saved(nn.Sequential(nn.Linear(64, 10)), "int8")  # 64 * 10 weights of 3 bytes less, 10 scales
        1880
    """
    instance("model", model, nn.Module, "a torch.nn.Module")
    saved, layers = 0, _layers(model, SKIPPED)
    group_size = _group_size(layers) if group_size is None else integer("group_size", group_size, 1)
    for layer in layers.values():
        weights = layer.parameters() if isinstance(layer, FusedExperts) else (layer.weight,)
        for weight, size in zip(weights, _inputs(layer), strict=True):
            rows = weight.numel() // size
            codes = weight.numel() // 2 if kind == "int4" else weight.numel()
            saved += weight.nbytes - codes - 4 * rows * (size // group_size if kind == "int4" else 1)
    return saved


def _layers(model: nn.Module, skip: Collection[str]) -> dict[str, nn.Linear | FusedExperts]:
    """Return the layers to quantize by name."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | FusedExperts) and not _skipped(path, skip)
    }


def _inputs(layer: nn.Linear | FusedExperts) -> tuple[int, ...]:
    """Return the inputs of each of a layer's matrices."""
    return tuple(layer.inputs) if isinstance(layer, FusedExperts) else (layer.in_features,)


def _group_size(layers: Mapping[str, nn.Linear | FusedExperts]) -> int:
    """Return the default group size of int4: 64 if it divides the inputs of all layers, else 32."""
    return 32 if any(size % 64 for layer in layers.values() for size in _inputs(layer)) else 64


def _check_group_size(group_size: int, inputs: int, divided: str) -> None:
    if group_size not in GROUP_SIZES or inputs % group_size:
        raise ValueError(f"group_size is {group_size}; expected 32, 64, 128 or 256, and a divisor of {divided}")


def _skipped(path: str, skip: Collection[str]) -> bool:
    """Return whether a layer stays as it is: its name is in ``skip``, or it is an adapter's replacement."""
    return ".replacements." in path or path.removesuffix(".base_layer").rpartition(".")[2] in skip


def _quantized(layer: nn.Linear, kind: str, group_size: int, per_row: bool) -> QuantizedLinear:
    if kind == "int8":
        return Int8Linear(layer)
    if kind == "int4":
        return Int4Linear(layer, group_size)
    dtype = torch.float8_e4m3fn if kind == "float8_e4m3" else torch.float8_e5m2
    return Float8Linear(layer, dtype, per_row)


def dequantize(model: AnyModel, dtype: torch.dtype = torch.float32) -> AnyModel:
    """Replace every quantized layer by a `torch.nn.Linear` of the same weight in place, and return the model.

    Its weights are frozen if all other weights of the model are, adapters aside, as below an adapter.
    """
    instance("model", model, nn.Module, "a torch.nn.Module")
    instance("dtype", dtype, torch.dtype, "a torch.dtype")
    if not dtype.is_floating_point:
        raise ValueError(wrong("dtype", dtype, "a dtype of floats"))
    frozen = _is_frozen(model)
    for path, module in [(path, m) for path, m in model.named_modules() if isinstance(m, QuantizedLinear)]:
        plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
        plain.weight = nn.Parameter(module.dequantized().to(dtype), requires_grad=not frozen)
        if module.bias is not None:  # an adapter may train it
            plain.bias = nn.Parameter(module.bias.to(dtype), requires_grad=not frozen or module.bias.requires_grad)
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, plain)
    for path, experts in [(path, m) for path, m in model.named_modules() if isinstance(m, SplitExperts)]:
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, experts.fused().requires_grad_(not frozen))
    return model


def _is_frozen(model: nn.Module) -> bool:
    """Return whether no weight of a model is trained, adapters and quantized layers aside; False if it has no other."""
    quantized = {id(bias) for m in model.modules() if isinstance(m, QuantizedLinear) for bias in m.parameters()}
    others = [
        weight.requires_grad
        for path, weight in model.named_parameters()
        if id(weight) not in quantized and ".adapters." not in path and ".replacements." not in path
    ]
    return bool(others) and not any(others)
