"""RoPE scaling: the inverse frequencies of each kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from bpe_llama.model.rope_parameters import rotated_width

Frequencies = tuple[list[float], float]
"""Inverse frequencies, one per rotated pair, and the factor that cosines and sines are multiplied by."""


def inverse_frequencies(rope: Mapping[str, Any], head_dim: int, max_positions: int, length: int) -> Frequencies:
    """Return the angle each pair turns by per position, and the scale of the rotation.

    Args:
        rope: ``config.rope``.
        head_dim: Width of a head.
        max_positions: ``config.max_position_embeddings``.
        length: Tokens in the sequence at hand; only ``dynamic`` and ``longrope`` look at it.

    Example:
        >>> inverse_frequencies({"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}, 4, 8, 8)
        ([0.5, 0.05], 1.0)
    """
    return KINDS[rope["rope_type"]](rope, rotated_width(rope, head_dim), max_positions, length)


def _plain(theta: float, width: int) -> list[float]:
    return [1.0 / theta ** (pair / width) for pair in range(0, width, 2)]


def _default(rope: Mapping[str, Any], width: int, max_positions: int, length: int) -> Frequencies:
    """Su et al. 2021, arXiv:2104.09864, section 3.2.2."""
    return _plain(rope["rope_theta"], width), 1.0


def _linear(rope: Mapping[str, Any], width: int, max_positions: int, length: int) -> Frequencies:
    """Position interpolation: Chen et al. 2023, arXiv:2306.15595."""
    return [frequency / rope["factor"] for frequency in _plain(rope["rope_theta"], width)], 1.0


def _llama3(rope: Mapping[str, Any], width: int, max_positions: int, length: int) -> Frequencies:
    """Llama 3.1: long wavelengths are slowed by ``factor``, short ones kept, those between blended."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    scaled = []
    for frequency in _plain(rope["rope_theta"], width):
        turns = context * frequency / (2 * math.pi)  # full turns within the trained context
        if turns < low:
            scaled.append(frequency / factor)
        elif turns > high:
            scaled.append(frequency)
        else:
            kept = (turns - low) / (high - low)
            scaled.append((1 - kept) * frequency / factor + kept * frequency)
    return scaled, 1.0


def _dynamic(rope: Mapping[str, Any], width: int, max_positions: int, length: int) -> Frequencies:
    """Dynamic NTK: beyond the trained length the base grows with the sequence (bloc97 and emozilla, 2023)."""
    factor, ratio = rope["factor"], max(length, max_positions) / max_positions
    theta = rope["rope_theta"] * (factor * ratio - (factor - 1)) ** (width / (width - 2))
    return _plain(theta, width), 1.0


def _yarn(rope: Mapping[str, Any], width: int, max_positions: int, length: int) -> Frequencies:
    """YaRN: interpolate slow pairs, keep fast ones, ramp between; Peng et al. 2023, arXiv:2309.00071, section 3.2."""
    theta, context = rope["rope_theta"], rope["original_max_position_embeddings"]
    factor = rope.get("factor") or max_positions / context

    def pair_that_turns(times: float) -> float:
        return width * math.log(context / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(rope.get("beta_fast") or 32), pair_that_turns(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high = high + 0.001 if high == low else high
    frequencies = []
    for pair, frequency in enumerate(_plain(theta, width)):
        slowed = min(max((pair - low) / (high - low), 0), 1)
        frequencies.append(frequency * (1 - slowed) + frequency / factor * slowed)

    def temperature(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    scale = rope.get("attention_factor")
    if scale is None:
        over, under = rope.get("mscale"), rope.get("mscale_all_dim")
        scale = temperature(over) / temperature(under) if over and under else temperature(1.0)
    return frequencies, scale


def _longrope(rope: Mapping[str, Any], width: int, max_positions: int, length: int) -> Frequencies:
    """LongRoPE: a searched factor for each pair, one set for short texts and one for long; arXiv:2402.13753."""
    context = rope["original_max_position_embeddings"]
    factors = rope["long_factor"] if length > context else rope["short_factor"]
    frequencies = [f / factor for f, factor in zip(_plain(rope["rope_theta"], width), factors, strict=True)]
    scale = rope.get("attention_factor")
    if scale is None:
        stretch = rope.get("factor") or max_positions / context
        scale = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(context))
    return frequencies, scale


KINDS: dict[str, Callable[[Mapping[str, Any], int, int, int], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
}

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Kinds whose frequencies depend on how long the sequence is."""


def same_rotation(rope: Mapping[str, Any], max_positions: int, one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether the tokens that two texts have in common have the same rotation in both.

    Args:
        rope: ``config.rope``.
        max_positions: ``config.max_position_embeddings``.
        one: Lengths of a text's prompt and of the whole text.
        other: The same of the other text.

    Example:
        >>> same_rotation({"rope_type": "dynamic"}, 100, (20, 40), (60, 60))
        True
        >>> same_rotation({"rope_type": "dynamic"}, 100, (20, 40), (120, 120))
        False
    """
    kind = rope["rope_type"]
    if kind not in LENGTH_DEPENDENT:
        return True
    switch = rope["original_max_position_embeddings"] if kind == "longrope" else max_positions
    if max(one[1], other[1]) <= switch:
        return True
    return kind == "longrope" and min(one[0], other[0]) > switch
