"""The metadata of a GGUF file as a model config and a generation config.

llama.cpp ignores keys that it does not know. Here each key of the architecture is honoured or refused by name.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and `convert_hf_to_gguf.py` of llama.cpp.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from bpe_llama._core import shown
from bpe_llama._gguf.header import GGUFHeader
from bpe_llama._gguf.token_types import end_ids
from bpe_llama.model.checkpoints.gguf_rope import decimal, rope_of
from bpe_llama.model.checkpoints.gguf_tensors import LAYER_TENSOR, Content
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_json import leave_out_ids
from bpe_llama.model.family import FAMILIES, Family, GGUFLayout

KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""Metadata keys of every architecture, without its name, and their fields; a layout has more."""
LAYER_NORM = "attention.layer_norm_epsilon"
PATTERN = "attention.sliding_window_pattern"
_HONOURED = """
    rope.dimension_count rope.freq_base rope.scaling.type rope.scaling.factor
    rope.scaling.original_context_length rope.scaling.finetuned expert_count expert_used_count tensor_data_layout
"""
"""Metadata keys, without the architecture, that are read here or do not change the computation."""
_ZERO_IS_NONE = ("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping")
SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
"""Sampling fields of `generation_config.json`, and llama.cpp's keys for them."""


def layout_of(family: Family) -> GGUFLayout:
    """Return how llama.cpp stores a family.

    Raises:
        ValueError: If it does not, or not in a way known here.
    """
    if family.gguf is None:
        known = ", ".join(name for name, other in FAMILIES.items() if other.gguf)
        raise ValueError(f"model_type {family.name!r} is not written as GGUF; expected one of {known}")
    return family.gguf


def family_of_gguf(content: Content) -> Family:
    """Return the family of a file's architecture.

    Raises:
        ValueError: If it is not known.
    """
    architecture = content.metadata.get("general.architecture")
    layouts = [(family, family.gguf) for family in FAMILIES.values() if family.gguf]
    of_it = [(family, layout) for family, layout in layouts if architecture in (layout.architecture, *layout.aliases)]
    if not of_it:
        names = ", ".join(sorted({name for _, layout in layouts for name in (layout.architecture, *layout.aliases)}))
        raise ValueError(f"architecture {architecture!r}, expected one of {names}")
    fitting = [family for family, layout in of_it if layout.fits(content.of_architecture, content.shapes)]
    return fitting[0] if fitting else of_it[0][0]


def config_from_gguf(content: Content) -> LlamaConfig:
    """Return the config of a file.

    Raises:
        ValueError: If the architecture is not known, a key is missing, or a key or value is not supported.
    """
    family = family_of_gguf(content)
    layout, metadata = layout_of(family), content.of_architecture

    def required(key: str) -> Any:
        if (value := metadata.get(key, layout.absent.get(key))) is None and key not in layout.absent:
            raise ValueError(f"metadata '{layout.architecture}.{key}' is missing")
        return value

    if "token_embd.weight" not in content.shapes:
        raise ValueError("tensor 'token_embd.weight' is missing")
    _check_layers(content, layout, required("block_count"))
    heads, hidden_size = required("attention.head_count"), required("embedding_length")
    if not isinstance(heads, int) or heads < 1:
        raise ValueError(
            f"metadata '{layout.architecture}.attention.head_count' is {shown(heads)}, expected a positive integer"
        )
    head_dim = metadata.get(layout.head_key, hidden_size // heads) if layout.head_key else hidden_size // heads
    _check_keys(content, layout, head_dim)
    fields: dict[str, Any] = {}
    for key, name in keys_of(layout).items():
        value = metadata.get(key, heads) if key == "attention.head_count_kv" else required(key)
        value = decimal(value) if isinstance(value, float) else value
        fields[name] = None if key in _ZERO_IS_NONE and value == 0 else value
    fields |= {
        "vocab_size": content.shapes["token_embd.weight"][0],
        "head_dim": head_dim,
        "rope_parameters": rope_of(content, family, layout, head_dim),
        "tie_word_embeddings": "output.weight" not in content.shapes,
        "attention_bias": "attention_bias" in family.biases and "blk.0.attn_q.bias" in content.shapes,
        "mlp_bias": "mlp_bias" in family.biases and "blk.0.ffn_gate.bias" in content.shapes,
        "hidden_act": family.config.ACTIVATIONS[0],
        "model_type": family.name,
    }
    if experts := metadata.get("expert_count", 0):
        fields |= {"num_local_experts": experts, "num_experts_per_tok": required("expert_used_count")}
    fields |= layout.fixed
    if layout.window_pattern is not None:
        pattern = metadata.get(PATTERN, layout.window_pattern)
        fields["layer_types"] = _layer_types(content, pattern, fields, *family.config.LOCAL)
    fields |= {name: value(fields) for name, value in fields.items() if callable(value)}
    layout.read(fields, metadata, content.shapes)
    for key in ("bos", "eos"):  # None if absent: the family's ids are not defaults here
        fields[f"{key}_token_id"] = content.metadata.get(f"tokenizer.ggml.{key}_token_id")
    padding = content.metadata.get("tokenizer.ggml.padding_token_id")
    in_vocabulary = isinstance(padding, int) and padding < fields["vocab_size"]  # a tokenizer may have more ids
    fields["pad_token_id"] = padding if in_vocabulary else None
    leave_out_ids(fields, fields["vocab_size"])
    return family.config(**fields)


def keys_of(layout: GGUFLayout) -> dict[str, str]:
    """Return the metadata keys of a layout, and the fields that they hold."""
    keys = KEYS | dict(layout.keys)
    if LAYER_NORM in keys:
        del keys["attention.layer_norm_rms_epsilon"]
    return keys


def _is_default_factor(name: str, value: Any, content: Content) -> bool:
    """Return whether a value is YaRN's attention factor, with which llama.cpp computes whatever the file says."""
    factor = content.of_architecture.get("rope.scaling.factor", 1.0)
    return bool(name == "rope.scaling.yarn_attn_factor" and abs(value - 0.1 * math.log(max(factor, 1.0)) - 1.0) < 1e-6)


def _check_layers(content: Content, layout: GGUFLayout, stated: Any) -> None:
    """Raise a ValueError unless the file holds tensors of exactly the layers that its metadata counts.

    Each tensor has its own bytes in the file, so this bounds the size of a config before memory is allocated.
    """
    layers = {match[1] for match in map(LAYER_TENSOR.fullmatch, content.shapes) if match}
    if len(layers) != stated:
        count = f"{stated:,}" if isinstance(stated, int) else repr(stated)
        raise ValueError(
            f"metadata '{layout.architecture}.block_count' is {count}, but the file holds tensors of "
            f"{len(layers):,} layers"
        )


def _layer_types(content: Content, pattern: Any, fields: Mapping[str, Any], local: str, key: str) -> list[str]:
    """Return the types of the layers: a pattern is a list of which have the window, or n if each n-th has none.

    Layers with a window are of the type ``local`` if the field ``key`` is not None.
    """
    layers = fields["num_hidden_layers"]
    if isinstance(pattern, int) and isinstance(layers, int):
        windowed = [pattern == 0 or layer % pattern != 0 for layer in range(1, layers + 1)]
    elif isinstance(pattern, list) and len(pattern) == layers:
        windowed = [bool(one) for one in pattern]
    else:
        raise ValueError(
            f"metadata {PATTERN!r} is {shown(pattern)}; expected one of 0 or 1 for each of {layers} layers, or a number"
        )
    return [local if has and fields.get(key) is not None else "full_attention" for has in windowed]


def _check_keys(content: Content, layout: GGUFLayout, head_dim: Any) -> None:
    """Raise a ValueError if a key of the architecture is not honoured and its value does not turn a feature off."""
    supported = {
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "expert_feed_forward_length": content.of_architecture.get("feed_forward_length"),
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
        "vocab_size": content.shapes["token_embd.weight"][0],
    }
    honoured = {*_HONOURED.split(), *keys_of(layout), *layout.derived}
    if layout.window_pattern is not None:
        honoured.add(PATTERN)
    if "longrope" in layout.rope_types:
        honoured.add("rope.scaling.attn_factor")
    for name, value in content.of_architecture.items():
        key = f"{layout.architecture}.{name}"
        if name in honoured:
            continue
        if name in supported:
            if value != supported[name] and not _is_default_factor(name, value, content):
                raise ValueError(f"metadata {key!r} is {shown(value)}; only {supported[name]!r} is supported")
        elif value:  # 0, false and an empty string turn a feature off
            raise ValueError(f"metadata {key!r} is {shown(value)}, a key that is not known")


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
            values[field] = decimal(value) if isinstance(value, float) else value
    if "temperature" in values:
        values["do_sample"] = values["temperature"] > 0
    unknown = [key for key in metadata if key.startswith("general.sampling.") and key not in SAMPLING_KEYS.values()]
    if unknown:
        asked = ", ".join(f"{key} = {metadata[key]!r}" for key in unknown)
        warnings.warn(f"{header.path}: not honoured as defaults of sampling: {asked}", stacklevel=5)
    return values
