"""RoPE in GGUF files: the metadata keys of its base and scaling, and the tensors of frequency factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpe_llama.model.checkpoints.gguf_tensors import LONGROPE_FACTORS, ROPE_FACTORS, Content
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.family import Family, GGUFLayout
from bpe_llama.model.layers.rope_scaling import inverse_frequencies
from bpe_llama.model.rope_parameters import rotated_features


def decimal(value: float) -> float:
    """Return the shortest decimal number that rounds to this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def rope_of(content: Content, family: Family, layout: GGUFLayout, head_dim: int) -> dict[str, Any]:
    """Return the RoPE parameters of a file."""
    metadata = content.of_architecture
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": decimal(metadata.get("rope.freq_base", 10_000.0))}
    rotary = metadata.get("rope.dimension_count", head_dim)
    if family.has_partial_rotary:
        rope["partial_rotary_factor"] = rotary / head_dim
    elif rotary != head_dim:
        raise ValueError(f"rotates {rotary} of {head_dim} dimensions a head, only all of them is supported")
    if ROPE_FACTORS in content.shapes:
        rope |= _llama3_scaling(content, rope["rope_theta"], head_dim)
    elif set(LONGROPE_FACTORS.values()) & content.shapes.keys():
        rope |= _longrope_scaling(content, head_dim, rope)
    else:
        rope |= _scaling(content)
    if rope["rope_type"] not in layout.rope_types:
        raise ValueError(
            f"RoPE of type {rope['rope_type']!r}, but llama.cpp's {layout.architecture} has "
            f"{', '.join(layout.rope_types)}"
        )
    return rope


def _scaling(content: Content) -> dict[str, Any]:
    metadata = content.of_architecture
    kind, factor = metadata.get("rope.scaling.type"), metadata.get("rope.scaling.factor")
    if kind is None and factor not in (None, 0.0, 1.0):
        kind = "linear"  # llama.cpp's default
    if kind in (None, "none"):
        return {}
    if kind not in ("linear", "yarn"):
        raise ValueError(f"rope scaling {kind!r}, expected none, linear, yarn or llama3's factors")
    scaling = {"rope_type": kind, "factor": decimal(1.0 if factor is None else factor)}
    if kind == "yarn" and (length := metadata.get("rope.scaling.original_context_length")):
        scaling["original_max_position_embeddings"] = length
    return scaling


def _longrope_scaling(content: Content, head_dim: int, rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the LongRoPE scaling, of which the file holds the factors as tensors."""
    metadata = content.of_architecture
    context = metadata.get("context_length")
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "original_max_position_embeddings": metadata.get("rope.scaling.original_context_length", context),
    }
    for name, tensor in LONGROPE_FACTORS.items():
        if tensor not in content.shapes:
            raise ValueError(f"tensor {tensor!r} is missing")
        scaling[name] = [decimal(factor) for factor in content.values(tensor).flatten().tolist()]
    factor = metadata.get("rope.scaling.attn_factor", 1.0)
    _, expected = inverse_frequencies({**rope, **scaling}, head_dim, context or 0, 1)
    return scaling if math.isclose(factor, expected, rel_tol=1e-6) else scaling | {"attention_factor": decimal(factor)}


def _llama3_scaling(content: Content, theta: float, head_dim: int) -> dict[str, Any]:
    """Return the llama3 scaling with the frequency factors in the tensor `rope_freqs.weight`.

    The file holds the factors, not the four parameters that they follow from. All Llama 3.1 to 3.3 models have the same
    bounds, Llama 4 has others, and the largest entry is the parameter ``factor``; the factors that follow are compared
    to the file's.
    """
    factors = content.values(ROPE_FACTORS).flatten()
    largest = float(factors.max())
    turns = 8192 * theta ** -(torch.arange(0, head_dim, 2).float() / head_dim) / (2 * torch.pi)
    for high, smooth in ((4.0, ((turns - 1.0) / (4.0 - 1.0)).clamp(0, 1)), (1.0, (turns > 1.0).float())):
        expected = 1 / ((1 - smooth) / largest + smooth)
        if factors.shape == expected.shape and torch.allclose(factors, expected, rtol=1e-3):
            return {
                "rope_type": "llama3",
                "factor": largest,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": 8192,
            }
    raise ValueError("'rope_freqs.weight' holds factors other than those of Llama 3 and 4")


def rope_metadata(config: LlamaConfig) -> dict[str, Any]:
    """Return the metadata of a config's RoPE parameters, without the name of the architecture."""
    rope = config.rope
    metadata = {
        "rope.freq_base": rope["rope_theta"],
        "rope.dimension_count": rotated_features(rope, config.head_size),
        "rope.scaling.original_context_length": rope.get("original_max_position_embeddings"),
    }
    if rope["rope_type"] in ("linear", "yarn"):
        metadata |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] == "longrope":
        size = config.max_position_embeddings
        metadata["rope.scaling.attn_factor"] = inverse_frequencies(rope, config.head_size, size, 1)[1]
    return metadata


def rope_tensors(config: LlamaConfig) -> dict[str, Tensor]:
    """Return the tensors of frequency factors of a config's RoPE parameters, float32."""
    rope = config.rope
    if rope["rope_type"] == "longrope":
        return {tensor: torch.tensor(rope[name]).float() for name, tensor in LONGROPE_FACTORS.items()}
    if rope["rope_type"] != "llama3":
        return {}
    scaled, unscaled = (
        torch.tensor(inverse_frequencies(one, config.head_size, config.max_position_embeddings, 1)[0])
        for one in (rope, {"rope_type": "default", "rope_theta": rope["rope_theta"]})
    )
    return {ROPE_FACTORS: (unscaled.double() / scaled.double()).float()}
