"""Checks of the options of generation."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from numbers import Real
from operator import index
from typing import Any

from bpe_llama._arguments import iterator, reusable, wrong
from bpe_llama._core import shown
from bpe_llama.model.config_values import is_one_of


def check_whole(name: str, value: Any, expected: str = "an integer") -> None:
    """Raise for what is no integer; NumPy's and a tensor of one are."""
    try:
        whole = None if isinstance(value, bool) else index(value)
    except TypeError:
        whole = None
    if whole is None:
        raise TypeError(f"{name} is {shown(value)}; expected {expected}")


def check_count(name: str, value: Any, least: int) -> None:
    """Raise for what is no integer, or is too small."""
    check_whole(name, value)
    if value < least:
        raise ValueError(f"{name} is {shown(value)}; expected at least {least}")


def check_number(name: str, value: Any, least: float, most: float) -> None:
    """Raise for what is no finite number, or is out of range."""
    if isinstance(value, bool) or not isinstance(value, Real):  # NumPy's numbers are Real, too
        raise TypeError(f"{name} is {shown(value)}; expected a number")
    try:
        is_in_range = least <= float(value) <= most and not math.isinf(value)
    except OverflowError:  # an int beyond the largest float
        is_in_range = False
    if not is_in_range:
        expected = f"a finite number of at least {least}" if math.isinf(most) else f"{least} to {most}"
        raise ValueError(f"{name} is {shown(value)}; expected {expected}")


def read_once(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with a tuple for each iterator, such as a generator: it can be read only once, options again."""
    return {name: reusable(name, value) for name, value in options.items()}


def sequences_of_ids(name: str, given: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    """Return sequences of ids as tuples of ints."""
    try:
        several = tuple(tuple(index(token_id) for token_id in one) for one in given)
    except TypeError:
        raise TypeError(f"{name} is {shown(given)}; expected sequences of ids, such as [[5], [6, 7]]") from None
    if () in several:
        raise ValueError(f"{name} holds an empty sequence; expected one id at least in each")
    return several


def check_names(name: str, given: Any, known: Collection[str]) -> None:
    """Raise for what is no sequence of some names, each once at most."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"{name} is {shown(given)}; expected a sequence of names")
    unknown = [*islice((one for one in given if not is_one_of(one, known)), 1)]
    if unknown or len(set(given)) < len(given):
        what = f"names {shown(unknown[0])}" if unknown else "names a filter twice"
        raise ValueError(f"{name} {what}; expected some of {', '.join(known)}, each once")


def check_ending_ids(value: Any) -> None:
    """Raise for what is neither an id nor several."""
    try:
        index(value)
    except TypeError:
        expected = "an id, several, or None"
        for token_id in iterator("eos_id", value, expected):
            try:
                index(token_id)
            except TypeError:
                raise TypeError(wrong("eos_id", value, expected)) from None
