"""The RoPE parameters of a config: their spellings, and the names and ranges that each type of scaling has."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from bpe_llama._core import shown

REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
"""The parameters that each ``rope_type`` requires; `bpe_llama.model.layers.rope_scaling` computes with them."""

_ORIGINAL = "original_max_position_embeddings"
_OPTIONAL = {
    "llama3": (_ORIGINAL,),
    "yarn": (_ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": (_ORIGINAL, "attention_factor", "factor"),
}
_COMMON = ("rope_type", "rope_theta", "partial_rotary_factor")

_LARGEST = {"rope_theta": 1e18, "factor": 1e9, _ORIGINAL: 1e18, "low_freq_factor": 1e9, "high_freq_factor": 1e9}
"""The largest value of each positive parameter; its inverse is the smallest. Powers and differences are then finite."""

PARAMETERS = {name: frozenset((*_COMMON, *required, *_OPTIONAL.get(name, ()))) for name, required in REQUIRED.items()}
"""All parameters that each ``rope_type`` reads."""


def merge_rope(
    parameters: Mapping[str, Any] | None,
    theta: float | None,
    scaling: Mapping[str, Any] | None,
    default_theta: float = 10_000.0,
) -> dict[str, Any]:
    """Return the RoPE parameters that the keys of transformers 5 and 4 state together.

    Args:
        parameters: ``rope_parameters`` (transformers 5).
        theta: ``rope_theta`` (transformers 4).
        scaling: ``rope_scaling`` (transformers 4).
        default_theta: The base if no key states one.

    Raises:
        ValueError: If two keys contradict each other, one is not a mapping, or ``rope_type`` is not a string.

    Example:
        >>> merge_rope(None, 500_000.0, {"type": "linear", "factor": 2.0})
        {'rope_theta': 500000.0, 'rope_type': 'linear', 'factor': 2.0}
    """
    merged: dict[str, Any] = {}
    if theta is not None and (isinstance(theta, bool) or not isinstance(theta, int | float)):
        raise ValueError(f"rope_theta is {shown(theta)}; expected a number")
    for name, source in (
        ("rope_parameters", parameters),
        ("rope_theta", None if theta is None else {"rope_theta": theta}),
        ("rope_scaling", scaling),
    ):
        if source is not None and not isinstance(source, Mapping):
            raise ValueError(f"{name} is {shown(source)}; expected an object of names and values")
        source = source or {}
        for key, value in source.items():
            if key == "type" and "rope_type" in source:  # transformers then ignores the old name
                continue
            key = "rope_type" if key == "type" else key
            value = "longrope" if key == "rope_type" and value == "su" else value  # the name in Phi-3's first configs
            if key in merged and merged[key] != value:
                raise ValueError(
                    f"{name} says {key} = {shown(value)}, but it was already given as {merged[key]!r}; "
                    "give it once, or change it with config.replace(...)"
                )
            merged[key] = value
    merged = {"rope_theta": default_theta, "rope_type": "default"} | merged
    if not isinstance(merged["rope_type"], str):
        raise ValueError(f"rope_type is {shown(merged['rope_type'])}; expected a string")
    return merged


def read_parameters(rope: Mapping[str, Any], *, stacklevel: int) -> dict[str, Any]:
    """Return the RoPE parameters that the ``rope_type`` reads.

    Warns:
        UserWarning: If there are others, with their names.
    """
    rope_type = rope["rope_type"]
    read = PARAMETERS.get(rope_type, rope.keys())
    unused = sorted(name for name, value in rope.items() if name not in read and value is not None)
    if unused:
        message = f"rope_type {rope_type!r} does not read {', '.join(unused)}; ignored"
        warnings.warn(message, stacklevel=stacklevel + 1)
    return {name: value for name, value in rope.items() if name in read}


def check_rope_parameters(rope: Mapping[str, Any], head_dim: int) -> None:
    """Check the RoPE parameters of a config.

    Raises:
        ValueError: If ``rope_type`` is unknown, a parameter is missing or out of range, or the number of rotated
            features is odd.

    Example:
        >>> check_rope_parameters({"rope_type": "linear", "rope_theta": 1e4}, 64)
        Traceback (most recent call last):
        ValueError: rope_type 'linear' needs 'factor', which is missing
    """
    rope_type = rope.get("rope_type")
    if rope_type not in REQUIRED:
        raise ValueError(f"rope_type is {shown(rope_type)}; expected one of {', '.join(REQUIRED)}")
    for name in REQUIRED[rope_type]:
        if rope.get(name) is None:
            raise ValueError(f"rope_type {rope_type!r} needs {name!r}, which is missing")
    for name, largest in _LARGEST.items():
        value = rope.get(name)
        if value is not None and not _is_number(value, 1 / largest, largest):
            raise ValueError(f"{name} is {shown(value)}; expected a positive number, {1 / largest:g} to {largest:g}")
    for name in ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow"):
        value = rope.get(name)
        if value is not None and not _is_number(value, 0, 1e9):
            raise ValueError(f"{name} is {shown(value)}; expected a number from 0 to 1e9")
    if not isinstance(rope.get("truncate", True), bool):
        raise ValueError(f"truncate is {shown(rope['truncate'])}; expected true or false")
    fraction = rope.get("partial_rotary_factor", 1.0)
    if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise ValueError(f"partial_rotary_factor is {shown(fraction)}; expected a number in (0, 1]")
    rotated = rotated_features(rope, head_dim)
    if rotated < 2 or rotated % 2:
        raise ValueError(f"RoPE rotates pairs: {rotated} of head_dim {head_dim} are rotated; expected an even number")
    if rope_type == "dynamic" and rotated == 2:
        raise ValueError(f"rope_type 'dynamic' rotates {rotated} features of head_dim {head_dim}; expected at least 4")
    if rope_type == "yarn" and rope["rope_theta"] == 1:
        raise ValueError(f"rope_theta is {rope['rope_theta']}; expected another number than 1 with rope_type 'yarn'")
    if rope_type == "longrope" and rope.get(_ORIGINAL) == 1:
        raise ValueError(f"{_ORIGINAL} is 1; expected at least 2 with rope_type 'longrope'")
    for name in ("short_factor", "long_factor") if rope_type == "longrope" else ():
        if not isinstance(rope[name], Sequence):
            raise ValueError(f"{name} is {shown(rope[name])}; expected a list of {rotated // 2} numbers")
        if len(rope[name]) != rotated // 2:
            raise ValueError(f"{name} has {len(rope[name])} values; expected {rotated // 2}, one for each rotated pair")
        for value in rope[name]:
            if not _is_number(value, 1e-9, 1e9):
                raise ValueError(f"{name} has {value!r:.100}; expected positive numbers, 1e-09 to 1e+09")


def _is_number(value: object, low: float, high: float) -> bool:
    """Return whether a value is a number in a range; NaN is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def scaled_length(rope: Mapping[str, Any], max_positions: int) -> int:
    """Return the context length in tokens: ``factor`` times the original one, at least ``max_positions``.

    llama3 and longrope extend it, too, but their files state the result as ``max_position_embeddings``.

    Example:
        >>> scaled_length({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}, 40_960)
        131072
    """
    if rope["rope_type"] not in ("linear", "dynamic", "yarn"):
        return max_positions
    original = rope[_ORIGINAL] if rope["rope_type"] == "yarn" else max_positions
    return max(max_positions, int(original * rope["factor"]))


def rotated_features(rope: Mapping[str, Any], head_dim: int) -> int:
    """Return how many features of a head are rotated: ``head_dim`` times ``partial_rotary_factor``.

    Example:
        >>> rotated_features({"partial_rotary_factor": 0.25}, 64)
        16
    """
    return int(head_dim * rope.get("partial_rotary_factor", 1.0))
