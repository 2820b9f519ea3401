"""Checks of single values of a config; an error names the value and what was expected."""

from __future__ import annotations

import math
from typing import Any


def check_flag(name: str, value: Any) -> None:
    """Check that a value is true or false.

    Raises:
        TypeError: If it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; expected true or false")


def check_size(name: str, value: Any) -> None:
    """Check that a value is an integer of at least 1.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; expected an integer")
    if value < 1:
        raise ValueError(f"{name} is {value}; expected at least 1")


def check_number(name: str, value: Any) -> None:
    """Check that a value is a finite number of at least 0.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}; expected a number")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}; expected a finite number of at least 0")


def check_probability(name: str, value: Any) -> None:
    """Check that a value is a number from 0 to 1.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.
    """
    check_number(name, value)
    if value > 1:
        raise ValueError(f"{name} is {value}; expected a probability, 0 to 1")
