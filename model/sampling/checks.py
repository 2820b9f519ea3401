"""Checks of the options of generation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from operator import index
from typing import Any

from bpe_llama._arguments import iterator, wrong


def check_whole(name: str, value: Any, expected: str = "an integer") -> None:
    """Raise for what is no integer; NumPy's and a tensor of one are."""
    try:
        whole = None if isinstance(value, bool) else index(value)
    except TypeError:
        whole = None
    if whole is None:
        raise TypeError(f"{name} is {value!r}; expected {expected}")


def check_count(name: str, value: Any, least: int) -> None:
    """Raise for what is no integer, or is too small."""
    check_whole(name, value)
    if value < least:
        raise ValueError(f"{name} is {value}; expected at least {least}")


def check_number(name: str, value: Any, least: float, most: float) -> None:
    """Raise for what is no finite number, or is out of range."""
    if isinstance(value, bool) or not isinstance(value, Real):  # NumPy's numbers are Real, too
        raise TypeError(f"{name} is {value!r}; expected a number")
    try:
        is_in_range = least <= float(value) <= most and not math.isinf(value)
    except OverflowError:  # an int beyond the largest float
        is_in_range = False
    if not is_in_range:
        expected = f"a finite number of at least {least}" if math.isinf(most) else f"{least} to {most}"
        raise ValueError(f"{name} is {value}; expected {expected}")


def sequences_of_ids(name: str, given: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    """Return sequences of ids as tuples of ints."""
    try:
        several = tuple(tuple(index(token_id) for token_id in one) for one in given)
    except TypeError:
        raise TypeError(f"{name} is {given!r}; expected sequences of ids, such as [[5], [6, 7]]") from None
    if () in several:
        raise ValueError(f"{name} holds an empty sequence; expected one id at least in each")
    return several


def check_ending_ids(value: Any) -> None:
    """Raise for what is neither an id nor several."""
    try:
        index(value)
    except TypeError:
        expected = "an id, several, or None"
        for token_id in iterator("eos_id", value, expected):
            if not hasattr(token_id, "__index__"):
                raise TypeError(wrong("eos_id", value, expected)) from None
