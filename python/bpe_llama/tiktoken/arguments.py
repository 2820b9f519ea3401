"""Checks of the arguments that tiktoken takes otherwise than the compiled tokenizer."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Any, TypedDict

from bpe_llama._arguments import integer, wrong
from bpe_llama._core import shown

_MOST_CHECKED = 1 << 20
"""Ids of which one that is out of range is looked for, after one is not known: `range(10**12)` has many."""


class Specials(TypedDict):
    """The keywords of the compiled tokenizer."""

    allowed_special: Any
    disallowed_special: Any


def checked_specials(known: set[str], allowed: Any, disallowed: Any) -> Specials:
    """Return special tokens as the compiled tokenizer takes them.

    Raises:
        TypeError: If ``allowed`` is neither a set of str nor ``"all"``, or ``disallowed`` no collection of str.
    """
    if isinstance(allowed, (set, frozenset)):
        _check_names("allowed_special", allowed)
        allowed = allowed & known
    elif not _is_all(allowed):
        raise TypeError(f'expected allowed_special to be a set of str or "all", got {shown(allowed)}')
    if _is_all(disallowed):
        return Specials(allowed_special=allowed, disallowed_special="all")
    given = listed("disallowed_special", () if disallowed is None else disallowed, 'a collection of str or "all"')
    _check_names("disallowed_special", given)
    return Specials(allowed_special=allowed, disallowed_special=frozenset(given))


def _is_all(names: object) -> bool:
    """Return whether special tokens are given as ``"all"``."""
    return isinstance(names, str) and names == "all"


def _check_names(argument: str, names: Collection[object]) -> None:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"expected {argument} to hold str, got {shown(name)}")


def thread_count(num_threads: int | None) -> int | None:
    """Return how many threads to use: as many as asked for, but no more than there are processors.

    Raises:
        ValueError: If it is not positive.
    """
    if num_threads is None:
        return None
    return min(integer("num_threads", num_threads, 1), os.cpu_count() or 1)


def listed(name: str, values: Iterable[Any], expected: str) -> list[Any]:
    """Return the items of an argument; of a text, its characters, as in tiktoken.

    Raises:
        TypeError: If it is not iterable.
    """
    try:
        return list(iter(values))
    except TypeError:
        raise TypeError(wrong(name, values, expected)) from None


def check_sequence(tokens: object) -> None:
    """Raise `TypeError` if ids are no sequence: a set, a dict or a generator."""
    if isinstance(tokens, (list, tuple)):
        return
    if isinstance(tokens, dict) or not hasattr(type(tokens), "__getitem__"):
        raise TypeError(wrong("tokens", tokens, "a sequence of ids"))


def refuse_large(tokens: Sequence[int]) -> None:
    """Raise `OverflowError` if an id is negative or does not fit into 32 bits; of many ids, one of the first."""
    for token in islice(tokens, _MOST_CHECKED):
        if not 0 <= int(token) < 2**32:
            raise OverflowError(f"id {shown(token)} is out of range; expected 0 to {2**32 - 1}") from None
