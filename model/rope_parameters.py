"""The RoPE parameters of a config: which each kind of scaling needs, and their ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
"""The parameters that each ``rope_type`` needs. `bpe_llama.model.layers.rope_scaling` computes with them."""


def check_rope_parameters(rope: Mapping[str, Any], head_dim: int) -> None:
    """Check that a config's rotary parameters are complete, before any tensor is made.

    Raises:
        ValueError: If the kind is unknown, a parameter is missing or out of range, or the rotated width is odd.

    Example:
        >>> check_rope_parameters({"rope_type": "linear", "rope_theta": 1e4}, 64)
        Traceback (most recent call last):
        ValueError: rope_type 'linear' needs 'factor', which is missing
    """
    kind = rope.get("rope_type")
    if kind not in REQUIRED:
        raise ValueError(f"rope_type is {kind!r}; expected one of {', '.join(REQUIRED)}")
    for name in REQUIRED[kind]:
        if rope.get(name) is None:
            raise ValueError(f"rope_type {kind!r} needs {name!r}, which is missing")
    for name in ("rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"):
        value = rope.get(name, 1.0)
        if value is not None and (not isinstance(value, int | float) or not 0 < value < math.inf):
            raise ValueError(f"{name} is {value!r}; expected a positive number")
    share = rope.get("partial_rotary_factor", 1.0)
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise ValueError(f"partial_rotary_factor is {share!r}; expected a number in (0, 1]")
    width = rotated_width(rope, head_dim)
    if width < 2 or width % 2:
        raise ValueError(
            f"rotary positions turn pairs: {width} of head_dim {head_dim} are rotated; expected an even number"
        )
    for name in ("short_factor", "long_factor") if kind == "longrope" else ():
        if not isinstance(rope[name], Sequence):
            raise ValueError(f"{name} is {rope[name]!r}; expected a list of {width // 2} numbers")
        if len(rope[name]) != width // 2:
            raise ValueError(f"{name} has {len(rope[name])} values; expected {width // 2}, one for each rotated pair")


def rotated_width(rope: Mapping[str, Any], head_dim: int) -> int:
    """Return how many of a head's features are rotated (fewer than all with ``partial_rotary_factor``).

    Example:
        >>> rotated_width({"partial_rotary_factor": 0.25}, 64)
        16
    """
    return int(head_dim * rope.get("partial_rotary_factor", 1.0))
