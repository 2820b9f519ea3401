"""Checks of the arguments that tiktoken takes otherwise than the compiled tokenizer."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any, TypedDict


class Specials(TypedDict):
    """The keywords of the compiled tokenizer."""

    allowed_special: Any
    disallowed_special: Any


def checked_specials(known: set[str], allowed: Any, disallowed: Any) -> tuple[Specials, frozenset[str]]:
    """Return special tokens as the compiled tokenizer takes them, and disallowed strings that are no special tokens.

    Raises:
        TypeError: If ``allowed`` is neither a set of str nor ``"all"``, or ``disallowed`` no collection of str.
    """
    if isinstance(allowed, (set, frozenset)):
        _check_names("allowed_special", allowed)
        allowed = allowed & known
    elif not _is_all(allowed):
        raise TypeError(f'expected allowed_special to be a set of str or "all", got {allowed!r:.80}')
    if _is_all(disallowed):
        return Specials(allowed_special=allowed, disallowed_special="all"), frozenset()
    names = frozenset(disallowed)
    _check_names("disallowed_special", names)
    return Specials(allowed_special=allowed, disallowed_special=names & known), names - known


def _is_all(names: object) -> bool:
    """Return whether special tokens are given as ``"all"``."""
    return isinstance(names, str) and names == "all"


def _check_names(argument: str, names: Collection[object]) -> None:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"expected {argument} to hold str, got {name!r:.80}")


def thread_count(num_threads: int | None) -> int | None:
    """Return how many threads to use: as many as asked for, but no more than there are processors.

    Raises:
        ValueError: If it is not positive.
    """
    if num_threads is None:
        return None
    if num_threads <= 0:
        raise ValueError(f"num_threads is {num_threads}; expected at least 1")
    return min(num_threads, os.cpu_count() or 1)


def check_sequence(tokens: object) -> None:
    """Raise `TypeError` if ids are no sequence: a set, a dict or a generator."""
    if isinstance(tokens, (list, tuple)):
        return
    if isinstance(tokens, dict) or not hasattr(type(tokens), "__getitem__"):
        raise TypeError(f"expected a sequence of ids, got {type(tokens).__name__}")


def refuse_large(tokens: Sequence[int]) -> None:
    """Raise `OverflowError` if an id is negative or does not fit into 32 bits."""
    for token in tokens:
        if not 0 <= int(token) < 2**32:
            raise OverflowError(f"id {token} is out of range; expected 0 to {2**32 - 1}") from None
