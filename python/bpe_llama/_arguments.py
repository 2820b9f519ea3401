"""Checks of arguments: an error says which argument it is, its value, and what was expected.

The compiled half is ``rust/python/src/named.rs``.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bpe_llama._core import shown

T = TypeVar("T")


def wrong(name: str, value: object, expected: str) -> str:
    """Return the message for an argument's value.

    Examples:
        >>> wrong("vocab_size", 8e3, "an int")
        'vocab_size must be an int, got 8000.0'
    """
    return f"{name} must be {expected}, got {shown(value)}"


def integer(name: str, value: object, least: int | None = None) -> int:
    """Return an argument as an int; NumPy integers are accepted.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is below ``least``, or there is one and it takes more than 64 bits.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(wrong(name, value, "an int"))
    try:
        whole = operator.index(value)
    except TypeError:  # an array or a tensor of several numbers
        raise TypeError(wrong(name, value, "an int")) from None
    if least is not None and whole < least:
        raise ValueError(f"{name} is {shown(whole)}; expected at least {least}")
    if least is not None and whole >= 1 << 63:
        raise ValueError(f"{name} is {shown(whole)}; expected less than 2**63")
    return whole


def torch_seed(value: object) -> int:
    """Return the argument ``seed``, which must be one that torch's generators take.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is out of range.
    """
    seed = integer("seed", value)
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"seed is {shown(seed)}; expected -2**63 to 2**64 - 1")
    return seed


def number(name: str, value: object) -> float:
    """Return an int, a float, or a NumPy number or tensor without dimensions, as it is; ``bool`` is not accepted.

    Raises:
        TypeError: If it is no number.
        ValueError: If no float can hold it.
    """
    is_one = hasattr(value, "__float__") or hasattr(value, "__index__")
    if isinstance(value, (bool, str, bytes, type)) or not is_one or getattr(value, "ndim", None):
        raise TypeError(wrong(name, value, "a number"))
    try:
        float(value)  # type: ignore[arg-type]
    except (OverflowError, ValueError):  # an int or a fraction beyond the largest float, a signaling NaN
        raise ValueError(f"{name} is {shown(value)}; expected a number that a float can hold") from None
    return value  # type: ignore[return-value]  # a NumPy number is one


def boolean(name: str, value: object, expected: str = "True or False") -> bool:
    """Return an argument that must be a ``bool``, or NumPy's.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(wrong(name, value, expected))
    return bool(value)


def string(name: str, value: object) -> str:
    """Return an argument that must be a ``str``.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(value, str):
        raise TypeError(wrong(name, value, "a str"))
    return value


def strings(name: str, values: Iterable[str], expected: str = "a list of str", *, in_order: bool = False) -> list[str]:
    """Return an argument that must be a list of texts, or another iterable of them, none empty.

    Raises:
        TypeError: As `iterator`; or if an item is no ``str``.
        ValueError: If an item is empty or has a lone surrogate, or an iterator does not end.
    """
    texts = list(iterator(name, reusable(name, values), expected, in_order=in_order))
    for index, text in enumerate(texts):
        if not string(f"{name}[{index}]", text):
            raise ValueError(f"{name}[{index}] is empty; expected text")
        check_surrogates(f"{name}[{index}]", text)
    return texts


_LONE_SURROGATE = re.compile("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")


def check_surrogates(name: str, text: str) -> None:
    """Raise `ValueError` for a text with a lone surrogate: half of a UTF-16 pair, which is no character.

    `Tokenizer.encode` takes it for U+FFFD, as tiktoken does; nothing is to be continued or answered from such a guess.
    """
    if not text.isascii() and (found := _LONE_SURROGATE.search(text)):
        what = f"{name} holds {found[0]!r} at character {found.start()}"
        raise ValueError(f"{what}, a lone surrogate, which is no character; expected it left out or replaced")


def path(name: str, value: object) -> Path:
    """Return an argument that must be a ``str`` or another path.

    Raises:
        TypeError: If it is none.
        FileNotFoundError: If it is empty; ``Path("")`` would be the current folder.
        ValueError: If no file can have this name: it holds a zero byte, or a lone surrogate that stands for no byte.
    """
    try:
        found = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        found = None
    if not isinstance(found, str):
        raise TypeError(wrong(name, value, "a str or another path"))
    if not found:
        raise FileNotFoundError(f"{name} is '': no such file or folder")
    try:
        is_possible = b"\0" not in os.fsencode(found)
    except UnicodeEncodeError:
        is_possible = False
    if not is_possible:
        raise ValueError(wrong(name, value, "a path without zero bytes and lone surrogates"))
    return Path(found)


def instance(name: str, value: T, kind: type[Any] | tuple[type[Any], ...], expected: str | None = None) -> T:
    """Return an argument that must be of a class, or of one of several.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(value, kind):
        raise TypeError(wrong(name, value, expected or f"a {getattr(kind, '__name__', kind)}"))
    return value


def iterator(name: str, values: Iterable[T], expected: str, *, in_order: bool = False) -> Iterator[T]:
    """Return an iterator over an argument that must be a collection or another iterable, and no text.

    Raises:
        TypeError: If it is none, or a mapping or table, of which only the keys or names of columns would be taken; with
            ``in_order`` also if it is a set, whose order differs from run to run.
    """
    refused = (str, bytes, Mapping, *((set, frozenset) if in_order else ()))
    try:
        if not isinstance(values, refused) and not hasattr(values, "columns"):
            return iter(values)
    except TypeError:
        pass
    raise TypeError(wrong(name, values, expected))


_MOST_ITEMS = 1 << 20  # more than a vocabulary has tokens


def reusable(name: str, values: Iterable[T]) -> Iterable[T]:
    """Return an argument that can be read several times: an iterator, which is spent after once, becomes a tuple.

    Raises:
        ValueError: If the iterator does not end.
    """
    if not isinstance(values, Iterator):
        return values
    items = tuple(islice(values, _MOST_ITEMS + 1))
    if len(items) > _MOST_ITEMS:
        raise ValueError(f"{name} is an iterator of more than {_MOST_ITEMS:,} items; expected one that ends")
    return items


def one_of(name: str, value: object, known: Collection[str]) -> str:
    """Return an argument that must be one of some names.

    Raises:
        TypeError: If it is no ``str``.
        ValueError: If it is another one.
    """
    if string(name, value) not in known:
        raise ValueError(f"{name} is {shown(value)}; expected one of {', '.join(map(repr, known))}")
    return str(value)


def keywords_of(options: type) -> frozenset[str]:
    """Return the keywords of a ``TypedDict``, inherited ones included."""
    return options.__optional_keys__  # type: ignore[attr-defined]  # every TypedDict has it


def check_keywords(function: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise what Python raises for a keyword that a function does not have; name the nearest one.

    Examples:
        >>> check_keywords("train", {"max_step": 5}, ["max_steps", "seed"])
        Traceback (most recent call last):
        TypeError: train() got an unexpected keyword argument 'max_step'; did you mean 'max_steps'?
    """
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(sorted(known))}"
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}; {hint}")
