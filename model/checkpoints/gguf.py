"""Reads a model from a GGUF file, llama.cpp's format, and dequantizes it tensor by tensor.

A GGUF file has other tensor names than a Hugging Face checkpoint, no matrix of a tied head, one tensor for all experts
of a layer, and in some families rows of queries and keys that are ordered for interleaved RoPE pairs.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and `convert_hf_to_gguf.py` of llama.cpp.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bpe_llama._files import errors_naming
from bpe_llama._gguf.header import GGUFHeader, TensorInfo, read_gguf_model_header
from bpe_llama.model.checkpoints.assemble import check_shapes, empty_model, expected_shapes, fill, half_split_rows
from bpe_llama.model.checkpoints.gguf_config import config_from_gguf, generation_values, layout_of
from bpe_llama.model.checkpoints.gguf_tensors import (
    LAYER_TENSOR,
    LONGROPE_FACTORS,
    ROPE_FACTORS,
    Content,
    Names,
    check_installed,
    read_tensor,
)
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.device import resolve_device, resolve_dtype
from bpe_llama.model.family import GGUFSplit
from bpe_llama.model.generation_config import GenerationConfig
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import Pretrained

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def load_gguf(
    path: str | os.PathLike[str],
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    progress: Callable[[int, int], None] | None = None,
    check: Callable[[Pretrained, torch.device], None] | None = None,
) -> LlamaForCausalLM:
    """Return the model of a GGUF file, in evaluation mode.

    Args:
        path: A `.gguf` file of a known architecture, or any part of a split one. Tensors are F32, F16, BF16 or of a
            quantized type that the `gguf` package dequantizes.
        dtype: `"auto"` is the dtype of the file's matrices, float32 if they are quantized.
        device: `"auto"` is CUDA if available, else the CPU.
        progress: Called after each tensor with the tensors read so far and their total.
        check: Called before memory is allocated; see `assemble.empty_model`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, of another architecture, or its tensors do not fit its metadata.
        ImportError: If the package `gguf` is not installed.

    Cost: memory peaks at the weights in `dtype` plus one tensor, twice if the file holds it in parts.
    """
    header = read_gguf_model_header(path)
    check_installed()
    with errors_naming(header.path, (ValueError, TypeError, ArithmeticError)):
        config = config_from_gguf(Content.of(header))
        generation_config = GenerationConfig(generation_values(header, config))
    names = Names(layout_of(config.family))
    _check_counts(header, config, names)
    weights = dict(_weights(header, names))
    expected = expected_shapes(config)
    splits = {name: split for name in expected.keys() - weights.keys() if (split := names.split(name))}
    stored = _stored(config, expected, splits)
    check_shapes({name: info.shape for name, info in weights.items()}, stored, header.path)
    matrix = header.tensors.get("blk.0.attn_output.weight", header.tensors["token_embd.weight"])
    dtype = resolve_dtype(dtype, auto=_DTYPES.get(matrix.type_name))
    model = empty_model(config, dtype, resolve_device(device), LlamaForCausalLM, check)
    model.generation_config = generation_config
    return fill(model, _stream(weights, splits, config, dtype), progress, len(expected))


def _check_counts(header: GGUFHeader, config: LlamaConfig, names: Names) -> None:
    """Raise a ValueError unless the file holds tensors of exactly the experts that its metadata counts.

    Each tensor has its own bytes in the file, so this bounds the size of the model before memory is allocated.
    """
    for name, info in header.tensors.items():
        if info.nbytes is None or not _can_dequantize(info.type_id):
            raise ValueError(
                f"{info.path}: tensor {name!r} has tensor type {info.type_name}, which the gguf package does not "
                "dequantize"
            )
    experts = set()
    for name, info in header.tensors.items():
        if 0 in info.shape:
            raise ValueError(f"{header.path}: tensor {name!r} has shape {list(info.shape)}, which is empty")
        if (match := LAYER_TENSOR.fullmatch(name)) and match[2].endswith("_exps"):
            experts.add(info.shape[0] if info.shape else 0)
    if config.num_local_experts and experts != {config.num_local_experts}:
        raise ValueError(
            f"{header.path}: metadata '{names.architecture}.expert_count' is {config.num_local_experts:,}, "
            f"but the file holds tensors of {', '.join(map(str, sorted(experts))) or 'no'} experts"
        )


@cache
def _can_dequantize(type_id: int) -> bool:
    """Return whether the installed `gguf` package dequantizes a tensor type; tried on one block of zeros."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        tensor_type = GGMLQuantizationType(type_id)
        dequantize(np.zeros((1, GGML_QUANT_SIZES[tensor_type][1]), np.uint8), tensor_type)
    except (ValueError, KeyError, NotImplementedError):
        return False
    return True


def _weights(header: GGUFHeader, names: Names) -> Iterator[tuple[str, TensorInfo]]:
    """Yield each weight under its Hugging Face name, or GGUF's if it has none; experts are yielded one by one."""
    for name, info in header.tensors.items():
        if name == ROPE_FACTORS or name in LONGROPE_FACTORS.values():
            continue
        target = names.huggingface(name) or name
        if "{}" not in target or len(info.shape) < 2:
            is_row = name.endswith(".ffn_gate_inp_shexp.weight") and len(info.shape) == 1
            yield target, dataclasses.replace(info, shape=(1, *info.shape)) if is_row else info
            continue
        number, *shape = info.shape
        nbytes = None if info.nbytes is None else info.nbytes // max(1, number)
        for one in range(number):
            start = info.start + one * (nbytes or 0)
            yield target.format(one), dataclasses.replace(info, shape=tuple(shape), start=start, nbytes=nbytes)


def _stored(
    config: LlamaConfig, expected: Mapping[str, tuple[int, ...]], splits: Mapping[str, tuple[GGUFSplit, list[str]]]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors as a file stores them; the parts of split ones are named as in the file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in expected.items():
        if name not in splits:
            shapes[name] = shape
            continue
        split, parts = splits[name]
        tensors = split.split(config, torch.empty(shape, device="meta"))
        shapes |= {part: tuple(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)}
    return shapes


def _stream(
    weights: dict[str, TensorInfo],
    splits: Mapping[str, tuple[GGUFSplit, list[str]]],
    config: LlamaConfig,
    dtype: torch.dtype,
) -> Iterator[tuple[str, Tensor]]:
    layout = layout_of(config.family)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.kv_heads} if layout.interleaved else {}
    wholes = {part: name for name, (_, parts) in splits.items() for part in parts}
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, info in weights.items():
        part = name.split(".")[-2]
        tensor = read_tensor(info, dtype if len(info.shape) > 1 else torch.float32)  # `fill` converts vectors
        if name in wholes:
            split, parts = splits[wholes[name]]
            found = waiting.setdefault(wholes[name], {})
            found[name] = tensor
            if len(found) == len(parts):
                found = waiting.pop(wholes[name])
                yield wholes[name], split.join(config, [found[part] for part in parts])
        elif layout.norm_offset and part.endswith("norm"):
            yield name, tensor - layout.norm_offset
        else:
            yield name, half_split_rows(tensor, heads[part]) if part in heads else tensor
