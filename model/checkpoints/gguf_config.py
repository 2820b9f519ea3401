"""The metadata of a GGUF file as a model config and a generation config.

llama.cpp ignores keys that it does not know. Here each key of the architecture is honoured or refused by name.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and `convert_hf_to_gguf.py` of llama.cpp.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from bpe_llama._gguf.header import GGUFHeader
from bpe_llama._gguf.token_types import end_ids
from bpe_llama.model.checkpoints.gguf_tensors import ROPE_FACTORS, read_tensor
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_json import OUR_TYPE

_HONOURED = """
    block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv
    attention.key_length attention.layer_norm_rms_epsilon rope.dimension_count rope.freq_base rope.scaling.type
    rope.scaling.factor rope.scaling.original_context_length rope.scaling.finetuned expert_count expert_used_count
    tensor_data_layout
"""
"""Metadata keys, without `llama.`, that are read here or do not change the computation."""
SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
"""Sampling fields of `generation_config.json`, and llama.cpp's keys for them."""


def config_from_gguf(header: GGUFHeader) -> dict[str, Any]:
    """Return the config of a file as `LlamaConfig.from_dict` takes it.

    Raises:
        ValueError: If the architecture is not llama, a key is missing, or a key or value is not supported.
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
        "model_type": OUR_TYPE,  # transformers' families lack what llama.cpp has, such as biases beside experts
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
    for key in ("bos", "eos"):  # None if absent: LLaMA's 1 and 2 are not defaults here
        config[f"{key}_token_id"] = metadata.get(f"tokenizer.ggml.{key}_token_id")
    padding = metadata.get("tokenizer.ggml.padding_token_id")
    if isinstance(padding, int) and padding < config["vocab_size"]:  # a tokenizer may add ids that the model lacks
        config["pad_token_id"] = padding
    return config


def _check_keys(header: GGUFHeader, head_dim: Any) -> None:
    """Raise a ValueError if a key of the architecture is not honoured and its value does not turn a feature off."""
    supported = {
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
        if name in supported:
            if value != supported[name]:
                raise ValueError(f"{header.path}: metadata {key!r} is {value!r}; only {supported[name]!r} is supported")
        elif value:  # 0, false and an empty string turn a feature off
            raise ValueError(f"{header.path}: metadata {key!r} is {value!r}, a key that is not known")


def generation_values(header: GGUFHeader, config: LlamaConfig) -> dict[str, Any]:
    """Return the fields of `generation_config.json` that the file states: its EOS ids and sampling defaults.

    Warns:
        UserWarning: If the file has sampling keys that are not honoured.

    Raises:
        ValueError: If a value has the wrong type.
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
        warnings.warn(f"{header.path}: not honoured as defaults of sampling: {asked}", UserWarning, stacklevel=5)
    return values


def _decimal(value: float) -> float:
    """Return the shortest decimal number that rounds to this float32: 1e-05, not 9.999999747378752e-06."""
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
    """Return the llama3 scaling whose frequency factors are the tensor `rope_freqs.weight`.

    The file holds the factors, not the four parameters that they follow from. All Llama 3.1 to 3.3 models have the same
    bounds, and the largest entry is the parameter ``factor``; the factors that follow are compared to the file's.
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
