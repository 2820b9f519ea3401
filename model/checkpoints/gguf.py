"""Load LLaMA weights from a GGUF file, llama.cpp's format, dequantised tensor by tensor.

Four things differ from Hugging Face's layout and are undone here: tensors have other names, the rows of the query and
key projections are ordered for interleaved rotary pairs, the output matrix is left out where it is the embedding, and
the experts of a layer are stacked in one tensor.
The quantised formats themselves are the `gguf` package's business.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and `convert_hf_to_gguf.py` of llama.cpp.
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpe_llama._gguf.header import GGUFHeader, TensorInfo, read_gguf_model_header
from bpe_llama._gguf.token_types import end_ids
from bpe_llama.model.checkpoints.assemble import check_shapes, empty_model, expected_shapes, fill
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_json import OUR_TYPE
from bpe_llama.model.device import resolve_device, resolve_dtype
from bpe_llama.model.generation_config import GenerationConfig
from bpe_llama.model.llama import LlamaForCausalLM

_CHUNK_ELEMENTS = 1 << 24  # dequantise 64 MiB of float32 at a time, however large the tensor

OUTER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
EXPERT_NAMES = {"ffn_gate_exps": "w1", "ffn_down_exps": "w2", "ffn_up_exps": "w3"}
"""A tensor of these holds the matrices of all experts of a layer, one after another."""
ROUTER_NAMES = {"ffn_gate_inp": "block_sparse_moe.gate"}
ROPE_FACTORS = "rope_freqs.weight"
_HONOURED = """
    block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv
    attention.key_length attention.layer_norm_rms_epsilon rope.dimension_count rope.freq_base rope.scaling.type
    rope.scaling.factor rope.scaling.original_context_length rope.scaling.finetuned expert_count expert_used_count
    tensor_data_layout
"""
"""Keys of the metadata, after `llama.`, that are read, or say nothing about what is computed."""
SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
"""Where llama.cpp keeps what `generation_config.json` says of sampling."""
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def load_gguf(
    path: str | os.PathLike[str],
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> LlamaForCausalLM:
    """Return the model stored in a GGUF file, in evaluation mode.

    Quantised weights are dequantised as they are read, so memory peaks at the weights in `dtype` and one tensor more.

    Args:
        path: A `.gguf` file of a LLaMA or Mixtral, or any of the files that it is split over: F32, F16, BF16, or any
            quantised format that the `gguf` package dequantises.
        dtype: `"auto"` is the format of the file's matrices, float32 where they are quantised.
        device: `"auto"` is CUDA where there is one, else the CPU.
        progress: Called with tensors read and tensors in all, after each.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, of another architecture, or its tensors do not fit its metadata.
    """
    header = read_gguf_model_header(path)
    try:
        config = LlamaConfig.from_dict(config_from_gguf(header))
    except TypeError as error:
        raise ValueError(f"{header.path}: {error}") from None
    _check_counts(header, config)
    places = dict(_places(header))
    check_shapes({name: info.shape for name, info in places.items()}, expected_shapes(config), header.path)
    stored = header.tensors.get("blk.0.attn_q.weight", header.tensors["token_embd.weight"]).type_name
    model = empty_model(
        config, resolve_dtype(dtype, auto=_DTYPES.get(stored)), resolve_device(device), LlamaForCausalLM
    )
    try:
        model.generation_config = GenerationConfig(generation_values(header, config))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{header.path}: {error}") from None
    return fill(model, _stream(header, places, config, model.dtype, progress))


def huggingface_name(gguf_name: str) -> str | None:
    """Return Hugging Face's name of a GGUF tensor, or None where there is none.

    Example:
        >>> huggingface_name("blk.3.attn_q.weight")
        'model.layers.3.self_attn.q_proj.weight'
    """
    if match := _LAYER_TENSOR.fullmatch(gguf_name):
        layer, part, kind = match.groups()
        target = LAYER_NAMES.get(part) or ROUTER_NAMES.get(part)
        return f"model.layers.{layer}.{target}.{kind}" if target else None
    part, _, kind = gguf_name.rpartition(".")
    return f"{OUTER_NAMES[part]}.{kind}" if part in OUTER_NAMES and kind == "weight" else None


def _check_counts(header: GGUFHeader, config: LlamaConfig) -> None:
    """Refuse a file that lacks the layers and experts it counts, before a model of so many parts is made.

    Every tensor has bytes of its own in the file, so that what is made is no larger than the file allows.
    """
    for name, info in header.tensors.items():
        if info.nbytes is None or not _can_dequantize(info.type_id):
            raise ValueError(
                f"{info.path}: tensor {name!r} has number format {info.type_name}, which the gguf package does not "
                "dequantise"
            )
    layers, experts = set(), set()
    for name, info in header.tensors.items():
        if 0 in info.shape:
            raise ValueError(f"{header.path}: tensor {name!r} has shape {list(info.shape)}, which holds nothing")
        if match := _LAYER_TENSOR.fullmatch(name):
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
    """Return whether the installed `gguf` package dequantises a number format, tried on one block of zeros."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        kind = GGMLQuantizationType(type_id)
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        return False
    return True


def _places(header: GGUFHeader) -> Iterator[tuple[str, TensorInfo]]:
    """Yield the model's name of every weight in the file, GGUF's own where it has none, and where the weight lies."""
    for name, info in header.tensors.items():
        match = _LAYER_TENSOR.fullmatch(name)
        if match and match[2] in EXPERT_NAMES and match[3] == "weight" and len(info.shape) == 3:
            experts, *shape = info.shape
            nbytes = None if info.nbytes is None else info.nbytes // max(1, experts)
            for expert in range(experts):
                target = f"model.layers.{match[1]}.block_sparse_moe.experts.{expert}.{EXPERT_NAMES[match[2]]}.weight"
                start = info.start + expert * (nbytes or 0)
                yield target, dataclasses.replace(info, shape=tuple(shape), start=start, nbytes=nbytes)
        elif name != ROPE_FACTORS:
            yield huggingface_name(name) or name, info


def config_from_gguf(header: GGUFHeader) -> dict[str, Any]:
    """Return what `LlamaConfig.from_dict` makes the model's config of, made from the `llama.*` metadata.

    Raises:
        ValueError: If the architecture is not llama, a key is missing, or the file asks for what is not supported.
    """
    metadata, tensors = header.metadata, header.tensors
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{header.path}: architecture {architecture!r}, expected 'llama'")

    def required(key: str) -> Any:
        if (value := metadata.get(f"llama.{key}")) is None:
            raise ValueError(f"{header.path}: metadata 'llama.{key}' is missing")
        return value

    if "token_embd.weight" not in tensors:
        raise ValueError(f"{header.path}: tensor 'token_embd.weight' is missing")
    heads, hidden_size = required("attention.head_count"), required("embedding_length")
    if not isinstance(heads, int) or heads < 1:
        raise ValueError(
            f"{header.path}: metadata 'llama.attention.head_count' is {heads!r}, expected a positive integer"
        )
    head_dim = metadata.get("llama.attention.key_length", hidden_size // heads)
    _check_keys(header, head_dim)
    rotary = metadata.get("llama.rope.dimension_count", head_dim)
    if rotary != head_dim:
        raise ValueError(
            f"{header.path}: rotates {rotary} of {head_dim} dimensions a head, only all of them is supported"
        )
    config = {
        "model_type": OUR_TYPE,  # what llama.cpp computes, biases beside experts among it
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden_size,
        "intermediate_size": required("feed_forward_length"),
        "num_hidden_layers": required("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": required("context_length"),
        "rms_norm_eps": _decimal(required("attention.layer_norm_rms_epsilon")),
        "rope_theta": _decimal(metadata.get("llama.rope.freq_base", 10_000.0)),
        "rope_scaling": _rope_scaling(header, head_dim),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act": "silu",
    }
    if experts := metadata.get("llama.expert_count", 0):
        config |= {
            "num_local_experts": experts,
            "num_experts_per_tok": required("expert_used_count"),
        }
    for key in ("bos", "eos"):  # not LLaMA's 1 and 2 where there is none
        config[f"{key}_token_id"] = metadata.get(f"tokenizer.ggml.{key}_token_id")
    padding = metadata.get("tokenizer.ggml.padding_token_id")
    if isinstance(padding, int) and padding < config["vocab_size"]:  # a tokenizer may have added it to a smaller model
        config["pad_token_id"] = padding
    return config


def _check_keys(header: GGUFHeader, head_dim: Any) -> None:
    """Refuse a key of the architecture that is not honoured, unless it says that something is off.

    Raises:
        ValueError: Naming the key, its value and what is expected.
    """
    same = {
        "attention.value_length": head_dim,
        "expert_feed_forward_length": header.metadata.get("llama.feed_forward_length"),
        "attention.causal": True,
        "rope.scaling.attn_factor": 1.0,
        "rope.scaling.yarn_ext_factor": 1.0,
        "rope.scaling.yarn_attn_factor": 1.0,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "rope.scale_linear": 1.0,
        "logit_scale": 1.0,
        "embedding_scale": 1.0,
        "residual_scale": 1.0,
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
    }
    for key, value in header.metadata.items():
        start, _, name = key.partition(".")
        if start != "llama" or name in _HONOURED.split():
            continue
        if name in same:
            if value != same[name]:
                raise ValueError(f"{header.path}: metadata {key!r} is {value!r}; only {same[name]!r} is supported")
        elif value:  # 0, false and an empty text say that it is off
            raise ValueError(f"{header.path}: metadata {key!r} is {value!r}, a key that is not known")


def generation_values(header: GGUFHeader, config: LlamaConfig) -> dict[str, Any]:
    """Return what a `generation_config.json` would hold: the ids that end a text, and how to sample by default.

    Raises:
        ValueError: If an id or a number is none.
    """
    metadata = header.metadata
    ends = end_ids(metadata, config.vocab_size)
    values: dict[str, Any] = {} if ends == list(config.eos_token_ids) else {"eos_token_id": ends}
    for field, key in SAMPLING_KEYS.items():
        if (value := metadata.get(key)) is not None:
            values[field] = _decimal(value) if isinstance(value, float) else value
    if "temperature" in values:
        values["do_sample"] = values["temperature"] > 0
    unknown = [key for key in metadata if key.startswith("general.sampling.") and key not in SAMPLING_KEYS.values()]
    if unknown:
        asked = ", ".join(f"{key} = {metadata[key]!r}" for key in unknown)
        warnings.warn(f"{header.path}: not taken as defaults of sampling: {asked}", UserWarning, stacklevel=5)
    return values


def _decimal(value: float) -> float:
    """Return the decimal number that was meant by a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(header: GGUFHeader, head_dim: int) -> dict[str, Any] | None:
    kind = header.metadata.get("llama.rope.scaling.type", "none")
    if ROPE_FACTORS in header.tensors:
        return _llama3_scaling(header, head_dim)
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ValueError(f"{header.path}: rope scaling {kind!r}, expected none, linear, yarn or llama3's factors")
    scaling = {"rope_type": kind, "factor": _decimal(header.metadata.get("llama.rope.scaling.factor", 1.0))}
    if kind == "yarn" and (length := header.metadata.get("llama.rope.scaling.original_context_length")):
        scaling["original_max_position_embeddings"] = length
    return scaling


def _llama3_scaling(header: GGUFHeader, head_dim: int) -> dict[str, Any]:
    """Return the llama3 scaling whose factors are the tensor `rope_freqs.weight`.

    The file keeps the factors and not the four numbers they come from. Every model of the 3.1 to 3.3 family has the
    same bounds and a factor that shows as the largest entry, so these are tried and the result compared.
    """
    factors = read_tensor(header, header.tensors[ROPE_FACTORS], torch.float32).flatten()
    scaling = {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    theta = header.metadata.get("llama.rope.freq_base", 10_000.0)
    turns = 8192 * theta ** -(torch.arange(0, head_dim, 2).float() / head_dim) / (2 * torch.pi)
    smooth = ((turns - 1.0) / (4.0 - 1.0)).clamp(0, 1)
    expected = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    if factors.shape != expected.shape or not torch.allclose(factors, expected, rtol=1e-3):
        raise ValueError(f"{header.path}: 'rope_freqs.weight' holds factors other than Llama 3's")
    return scaling


def read_tensor(header: GGUFHeader, info: TensorInfo, dtype: torch.dtype) -> Tensor:
    """Return one tensor, dequantised to `dtype`, in GGUF's row order.

    Raises:
        ValueError: If its number format is not known.

    Cost: reads the tensor once; apart from the result it holds 64 MiB at most.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    if info.nbytes is None:
        raise ValueError(f"{info.path}: tensor {info.name!r} has number format {info.type_id}, which is not known")
    rows = info.shape[0] if len(info.shape) > 1 else 1
    out = torch.empty(info.shape, dtype=dtype)
    if out.numel() == 0:
        return out
    raw = np.memmap(info.path, np.uint8, "c", info.start, (rows, info.nbytes // rows))
    step = max(1, _CHUNK_ELEMENTS * rows // out.numel())
    flat = out.view(rows, -1)
    for begin in range(0, rows, step):
        values = dequantize(raw[begin : begin + step], GGMLQuantizationType(info.type_id))
        flat[begin : begin + step] = torch.from_numpy(values)
    return out


def half_split_rows(weight: Tensor, heads: int) -> Tensor:
    """Return a query or key projection with its rows ordered as Hugging Face orders them.

    llama.cpp turns neighbouring rows `(2 i, 2 i + 1)` of a head as a pair, Hugging Face rows `(i, i + H/2)`.

    Args:
        weight: Weight `(heads * H, D)` or bias `(heads * H,)`.
        heads: Number of heads, key/value heads for a key projection.

    Example:
        >>> half_split_rows(torch.arange(8), heads=2)
        tensor([0, 2, 1, 3, 4, 6, 5, 7])
    """
    pairs = weight.shape[0] // heads // 2
    return weight.view(heads, pairs, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def interleaved_rows(weight: Tensor, heads: int) -> Tensor:
    """Return the inverse of `half_split_rows`: rows as llama.cpp orders them.

    Example:
        >>> interleaved_rows(torch.tensor([0, 2, 1, 3]), heads=1)
        tensor([0, 1, 2, 3])
    """
    pairs = weight.shape[0] // heads // 2
    return weight.view(heads, 2, pairs, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _stream(
    header: GGUFHeader,
    places: dict[str, TensorInfo],
    config: LlamaConfig,
    dtype: torch.dtype,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[str, Tensor]]:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.kv_heads}
    for done, (name, info) in enumerate(places.items(), start=1):
        tensor = read_tensor(header, info, dtype)
        part = name.split(".")[-2]
        yield name, half_split_rows(tensor, heads[part]) if part in heads else tensor
        if progress is not None:
            progress(done, len(places))
