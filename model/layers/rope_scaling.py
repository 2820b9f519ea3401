"""RoPE scaling: the inverse frequencies of each ``rope_type``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.rope_parameters import rotated_features

Frequencies = tuple[list[float], float]
"""The inverse frequency of each rotated pair, and the attention factor, which multiplies cosines and sines."""


def inverse_frequencies(rope: Mapping[str, Any], head_dim: int, max_positions: int, length: int) -> Frequencies:
    """Return the inverse frequency of each pair, in radians per position, and the attention factor.

    Args:
        rope: ``config.rope``.
        head_dim: H.
        max_positions: ``config.max_position_embeddings``.
        length: Sequence length in tokens; only ``dynamic`` and ``longrope`` depend on it.

    Example:
        >>> inverse_frequencies({"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}, 4, 8, 8)
        ([0.5, 0.05], 1.0)
    """
    return _BY_ROPE_TYPE[rope["rope_type"]](rope, rotated_features(rope, head_dim), max_positions, length)


def _unscaled(theta: float, width: int) -> list[float]:
    return [1.0 / theta ** (pair / width) for pair in range(0, width, 2)]


def _default(rope: Mapping[str, Any], width: int, max_positions: int, length: int) -> Frequencies:
    """Su et al. 2021, arXiv:2104.09864, section 3.2.2."""
    return _unscaled(rope["rope_theta"], width), 1.0


def _linear(rope: Mapping[str, Any], width: int, max_positions: int, length: int) -> Frequencies:
    """Position interpolation: Chen et al. 2023, arXiv:2306.15595."""
    return [frequency / rope["factor"] for frequency in _unscaled(rope["rope_theta"], width)], 1.0


def _llama3(rope: Mapping[str, Any], width: int, max_positions: int, length: int) -> Frequencies:
    """Llama 3.1: divide the frequencies of long wavelengths by ``factor``, keep short ones, interpolate in between.

    Source: https://github.com/meta-llama/llama-models, ``models/llama3/model.py``, ``apply_scaling``.
    """
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    scaled = []
    for frequency in _unscaled(rope["rope_theta"], width):
        rotations = context * frequency / (2 * math.pi)  # within the pretraining context
        if rotations < low:
            scaled.append(frequency / factor)
        elif rotations > high or low == high:  # equal in Llama 4
            scaled.append(frequency)
        else:
            smooth = (rotations - low) / (high - low)
            scaled.append((1 - smooth) * frequency / factor + smooth * frequency)
    return scaled, 1.0


def _dynamic(rope: Mapping[str, Any], width: int, max_positions: int, length: int) -> Frequencies:
    """Dynamic NTK: beyond the pretraining context the base grows with the sequence length (bloc97, emozilla 2023)."""
    factor, ratio = rope["factor"], max(length, max_positions) / max_positions
    theta = rope["rope_theta"] * (factor * ratio - (factor - 1)) ** (width / (width - 2))
    return _unscaled(theta, width), 1.0


def _yarn(rope: Mapping[str, Any], width: int, max_positions: int, length: int) -> Frequencies:
    """YaRN: interpolate low frequencies, keep high ones, ramp in between; Peng et al. 2023, arXiv:2309.00071, 3.2."""
    theta, context = rope["rope_theta"], rope["original_max_position_embeddings"]
    factor = rope.get("factor") or max_positions / context

    def pair_of(rotations: float) -> float:
        return width * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_of(rope.get("beta_fast") or 32), pair_of(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high = high + 0.001 if high == low else high
    frequencies = []
    for pair, frequency in enumerate(_unscaled(theta, width)):
        ramp = min(max((pair - low) / (high - low), 0), 1)
        frequencies.append(frequency * (1 - ramp) + frequency / factor * ramp)

    def temperature(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    scale = rope.get("attention_factor")
    if scale is None:
        mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
        scale = temperature(mscale) / temperature(all_dim) if mscale and all_dim else temperature(1.0)
    return frequencies, scale


def _longrope(rope: Mapping[str, Any], width: int, max_positions: int, length: int) -> Frequencies:
    """LongRoPE: searched factors, one set for short sequences, one for long; Ding et al. 2024, arXiv:2402.13753."""
    context = rope["original_max_position_embeddings"]
    factors = rope["long_factor"] if length > context else rope["short_factor"]
    frequencies = [f / by for f, by in zip(_unscaled(rope["rope_theta"], width), factors, strict=True)]
    scale = rope.get("attention_factor")
    if scale is None:
        factor = rope.get("factor") or max_positions / context
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(context))
    return frequencies, scale


_BY_ROPE_TYPE: dict[str, Callable[[Mapping[str, Any], int, int, int], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
}

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""The values of ``rope_type`` with frequencies that depend on the sequence length."""


def same_rotation(rope: Mapping[str, Any], max_positions: int, one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether the common prefix of two sequences has the same rotation in both, so that its keys can be reused.

    Args:
        rope: ``config.rope``.
        max_positions: ``config.max_position_embeddings``.
        one: The lengths of one sequence's prompt and of what is cached of the sequence.
        other: The lengths of the other one.

    Example:
        >>> same_rotation({"rope_type": "dynamic"}, 100, (20, 40), (60, 60))
        True
        >>> same_rotation({"rope_type": "dynamic"}, 100, (20, 40), (120, 120))
        False
    """
    rope_type = rope["rope_type"]
    if rope_type not in LENGTH_DEPENDENT:
        return True
    context = rope["original_max_position_embeddings"] if rope_type == "longrope" else max_positions
    if max(*one, *other) <= context:
        return True
    return rope_type == "longrope" and min(one[0], other[0]) > context


def recompute_length(config: LlamaConfig) -> int | None:
    """Return the length at which generation computes all keys and values of a sequence anew before its next token.

    From then on all of its tokens have LongRoPE's long factors. None if keys keep their rotation.

    Example:
        >>> recompute_length(LlamaConfig()) is None
        True
    """
    if config.family.recomputes_keys and config.rope["rope_type"] == "longrope":
        return int(config.rope["original_max_position_embeddings"])
    return None
