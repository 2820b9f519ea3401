"""Weight-only quantization of linear layers; activations keep their dtype.

| kind | weight | scale |
|---|---|---|
| ``int8`` | int8, symmetric | one per row |
| ``int4`` | 4 bits, two per byte | scale and zero point per group of a row |
| ``float8_e4m3``, ``float8_e5m2`` | float8 | one per row, or one per matrix |

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

from collections.abc import Collection, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from bpe_llama._arguments import boolean, instance, integer, iterator, one_of, wrong
from bpe_llama._core import shown
from bpe_llama.model.layers.moe.fused import FusedExperts, SplitExperts
from bpe_llama.model.quantization.layers import (
    Float8Linear,
    Int4Linear,
    Int8Linear,
    QuantizedLinear,
    check_group_size,
)

AnyModel = TypeVar("AnyModel", bound=nn.Module)

KINDS = ("int8", "int4", "float8_e4m3", "float8_e5m2")
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
            does not divide the inputs of one. 32 is best for weights that were in groups of 32 before, as in a GGUF
            file.
        per_row: For float8, one scale per row instead of one per matrix.
        skip: Last parts of the names of layers that are not quantized.

    Raises:
        ValueError: If the kind is unknown or has no such option, the group size does not divide a layer's inputs, or
            adapters are merged into a layer. The model is then unchanged.

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
    if not boolean("per_row", per_row) and not kind.startswith("float8"):
        raise ValueError(f"per_row is False, but kind is {kind!r}; expected a float8 kind, or per_row=True")
    skip = tuple(iterator("skip", skip, "a list of names"))
    layers = _layers(model, skip)
    group_size = _group_size(layers, kind, group_size)
    for path in layers:
        if getattr(model.get_submodule(path.rpartition(".")[0]), "unmerged", None) is not None:
            where = path.removesuffix(".base_layer")
            raise ValueError(f"adapters are merged into {where}; expected them unmerged or removed before quantization")
    if kind == "int4":
        for path, layer in layers.items():
            for inputs in _inputs(layer):
                check_group_size(group_size, inputs, f"{path}'s {inputs} inputs")
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
    group_size = _group_size(layers, one_of("kind", kind, KINDS), group_size)
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


def _group_size(layers: Mapping[str, nn.Linear | FusedExperts], kind: str, stated: int | None) -> int:
    """Return the stated group size of int4; by default 64 if it divides all layers' inputs, else 32."""
    if stated is None:
        return 32 if any(size % 64 for layer in layers.values() for size in _inputs(layer)) else 64
    if kind != "int4":
        raise ValueError(f"group_size is {shown(stated)}, but kind is {kind!r}; expected 'int4', or no group_size")
    return integer("group_size", stated, 1)


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
