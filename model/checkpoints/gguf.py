"""Reads a LLaMA from a GGUF file, llama.cpp's format, and dequantizes it tensor by tensor.

A GGUF file has other tensor names than a Hugging Face checkpoint, rows of queries and keys that are ordered for
interleaved RoPE pairs, no matrix of a tied head, and one tensor for all experts of a layer.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and `convert_hf_to_gguf.py` of llama.cpp.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bpe_llama._gguf.header import GGUFHeader, TensorInfo, read_gguf_model_header
from bpe_llama.model.checkpoints.assemble import check_shapes, empty_model, expected_shapes, fill, half_split_rows
from bpe_llama.model.checkpoints.gguf_config import config_from_gguf, generation_values
from bpe_llama.model.checkpoints.gguf_tensors import (
    EXPERT_NAMES,
    LAYER_TENSOR,
    ROPE_FACTORS,
    huggingface_name,
    read_tensor,
)
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.device import resolve_device, resolve_dtype
from bpe_llama.model.generation_config import GenerationConfig
from bpe_llama.model.llama import LlamaForCausalLM

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def load_gguf(
    path: str | os.PathLike[str],
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> LlamaForCausalLM:
    """Return the model of a GGUF file, in evaluation mode.

    Args:
        path: A `.gguf` file of a LLaMA or Mixtral, or any part of a split one. Tensors are F32, F16, BF16 or of a
            quantized type that the `gguf` package dequantizes.
        dtype: `"auto"` is the dtype of the file's matrices, float32 if they are quantized.
        device: `"auto"` is CUDA if available, else the CPU.
        progress: Called after each tensor with the tensors read so far and their total.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, of another architecture, or its tensors do not fit its metadata.

    Cost: memory peaks at the weights in `dtype` plus one tensor.
    """
    header = read_gguf_model_header(path)
    try:
        config = LlamaConfig.from_dict(config_from_gguf(header))
    except TypeError as error:
        raise ValueError(f"{header.path}: {error}") from None
    _check_counts(header, config)
    weights = dict(_weights(header))
    check_shapes({name: info.shape for name, info in weights.items()}, expected_shapes(config), header.path)
    matrix = header.tensors.get("blk.0.attn_q.weight", header.tensors["token_embd.weight"])
    dtype = resolve_dtype(dtype, auto=_DTYPES.get(matrix.type_name))
    model = empty_model(config, dtype, resolve_device(device), LlamaForCausalLM)
    try:
        model.generation_config = GenerationConfig(generation_values(header, config))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{header.path}: {error}") from None
    return fill(model, _stream(header, weights, config, dtype, progress))


def _check_counts(header: GGUFHeader, config: LlamaConfig) -> None:
    """Raise a ValueError unless the file holds tensors of exactly the layers and experts that its metadata counts.

    Each tensor has its own bytes in the file, so this bounds the size of the model before memory is allocated.
    """
    for name, info in header.tensors.items():
        if info.nbytes is None or not _can_dequantize(info.type_id):
            raise ValueError(
                f"{info.path}: tensor {name!r} has tensor type {info.type_name}, which the gguf package does not "
                "dequantize"
            )
    layers, experts = set(), set()
    for name, info in header.tensors.items():
        if 0 in info.shape:
            raise ValueError(f"{header.path}: tensor {name!r} has shape {list(info.shape)}, which is empty")
        if match := LAYER_TENSOR.fullmatch(name):
            layers.add(match[1])
            if match[2] in EXPERT_NAMES:
                experts.add(info.shape[0] if info.shape else 0)
    if len(layers) != config.num_hidden_layers:
        raise ValueError(
            f"{header.path}: metadata 'llama.block_count' is {config.num_hidden_layers:,}, "
            f"but the file holds tensors of {len(layers):,} layers"
        )
    if config.num_local_experts and experts != {config.num_local_experts}:
        raise ValueError(
            f"{header.path}: metadata 'llama.expert_count' is {config.num_local_experts:,}, "
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


def _weights(header: GGUFHeader) -> Iterator[tuple[str, TensorInfo]]:
    """Yield each weight under its Hugging Face name, or GGUF's if it has none; experts are yielded one by one."""
    for name, info in header.tensors.items():
        match = LAYER_TENSOR.fullmatch(name)
        if match and match[2] in EXPERT_NAMES and match[3] == "weight" and len(info.shape) == 3:
            experts, *shape = info.shape
            nbytes = None if info.nbytes is None else info.nbytes // max(1, experts)
            for expert in range(experts):
                target = f"model.layers.{match[1]}.block_sparse_moe.experts.{expert}.{EXPERT_NAMES[match[2]]}.weight"
                start = info.start + expert * (nbytes or 0)
                yield target, dataclasses.replace(info, shape=tuple(shape), start=start, nbytes=nbytes)
        elif name != ROPE_FACTORS:
            yield huggingface_name(name) or name, info


def _stream(
    header: GGUFHeader,
    weights: dict[str, TensorInfo],
    config: LlamaConfig,
    dtype: torch.dtype,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[str, Tensor]]:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.kv_heads}
    for done, (name, info) in enumerate(weights.items(), start=1):
        tensor = read_tensor(header, info, dtype)
        part = name.split(".")[-2]
        yield name, half_split_rows(tensor, heads[part]) if part in heads else tensor
        if progress is not None:
            progress(done, len(weights))
