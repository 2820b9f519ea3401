"""Logits processors that need the earlier ids: no repeated n-grams, no bad words, and DRY.

They are plain Python over lists of ids: each searches the sequence for a few ids, whose scores
`bpe_llama.model.generation.sampler_dispatch` then changes. `SamplingParams` has their options and ranges.

Legend: T ids so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

from torch import Tensor

LogitsProcessor: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""Takes the ids so far, int64 (1, T), and logits, float32 (1, V); returns logits of that shape, as in transformers."""

LARGEST_EXPONENT = 88.7228391
"""The logarithm of the largest float32; llama.cpp limits the exponent of a DRY penalty by it."""


def repeated_ngram_ids(ids: Sequence[int], size: int) -> set[int]:
    """Return the ids that would complete an n-gram of ``size`` ids that has occurred already.

    Args:
        ids: Prompt and continuation.
        size: Ids of an n-gram, at least 1.

    Source: ``NoRepeatNGramLogitsProcessor`` of transformers.

    Cost: T comparisons.

    Example:
        >>> repeated_ngram_ids([5, 6, 7, 5, 6], 3)
        {7}
    """
    begin = list(ids[len(ids) - size + 1 :])
    if len(ids) < size:
        return set()
    return {ids[at + size - 1] for at in range(len(ids) - size + 1) if list(ids[at : at + size - 1]) == begin}


def bad_word_ids(ids: Sequence[int], words: Sequence[Sequence[int]]) -> set[int]:
    """Return the ids that would complete a bad word.

    Args:
        ids: Prompt and continuation.
        words: The bad words, each a sequence of at least one id.

    Source: ``NoBadWordsLogitsProcessor`` of transformers.

    Example:
        >>> sorted(bad_word_ids([5, 6], [[9], [6, 7], [5, 8]]))
        [7, 9]
    """
    return {
        word[-1]
        for word in words
        if len(word) == 1 or (len(word) <= len(ids) + 1 and list(ids[len(ids) - len(word) + 1 :]) == list(word[:-1]))
    }


def dry_penalties(
    ids: Sequence[int],
    *,
    multiplier: float,
    base: float = 1.75,
    allowed_length: int = 2,
    last_n: int = -1,
    breakers: Sequence[Sequence[int]] = (),
) -> dict[int, float]:
    """Return the penalties of DRY ("don't repeat yourself"), by id: to be subtracted from the scores.

    If the last ``n`` ids have occurred before, the id that followed them there is penalised by
    ``multiplier * base ** (n - allowed_length)``, with the largest such ``n``, if it is at least ``allowed_length``.

    Args:
        ids: Prompt and continuation.
        multiplier: Scales every penalty.
        base: Above 1; the factor by which a penalty grows with each further id.
        allowed_length: The longest repetition without a penalty, in ids; the id that would lengthen it is penalised.
        last_n: How many of the last ids are searched; -1 for all.
        breakers: Sequences of ids across which nothing is a repetition.

    Cost: linear in T.

    Source: p-e-w, https://github.com/oobabooga/text-generation-webui/pull/5677; what counts as a repetition is
    llama.cpp's ``llama_sampler_dry_apply``.

    Example:
        >>> dry_penalties([5, 6, 7, 5, 6], multiplier=0.8)
        {7: 0.8}
    """
    seen = list(ids) if last_n < 0 else list(ids[max(len(ids) - last_n, 0) :])
    if len(seen) <= allowed_length:
        return {}
    limit = _since_breaker(seen, breakers)
    if limit < allowed_length:
        return {}
    backwards = seen[::-1]
    longest: dict[int, int] = {}
    for place, length in enumerate(_common_with_start(backwards)[1:], start=1):
        length = min(length, limit)
        if length >= allowed_length:
            follower = backwards[place - 1]
            longest[follower] = max(longest.get(follower, 0), length)
    most = int(LARGEST_EXPONENT / math.log(base)) if base > 1.000001 else math.inf
    return {token_id: multiplier * base ** min(n - allowed_length, most) for token_id, n in sorted(longest.items())}


def _since_breaker(ids: Sequence[int], breakers: Sequence[Sequence[int]]) -> int:
    """Return the number of ids after the last breaker; of all ids if there is none."""
    by_first = _by_first(tuple(map(tuple, breakers)))
    for start in range(len(ids) - 1, -1, -1):
        ends = [start + len(b) for b in by_first.get(ids[start], ()) if tuple(ids[start : start + len(b)]) == b]
        if ends:
            return len(ids) - max(ends)
    return len(ids)


@lru_cache(maxsize=32)
def _by_first(breakers: tuple[tuple[int, ...], ...]) -> dict[int, list[tuple[int, ...]]]:
    """Return the breakers by their first id."""
    grouped: dict[int, list[tuple[int, ...]]] = {}
    for breaker in breakers:
        grouped.setdefault(breaker[0], []).append(breaker)
    return grouped


def _common_with_start(ids: Sequence[int]) -> list[int]:
    """Return for each place how many ids from there on equal those at the start: the Z function, in linear time."""
    lengths = [len(ids)] + [0] * (len(ids) - 1)
    left = right = 0
    for place in range(1, len(ids)):
        length = min(lengths[place - left], right - place) if place < right else 0
        while place + length < len(ids) and ids[length] == ids[place + length]:
            length += 1
        lengths[place] = length
        if place + length > right:
            left, right = place, place + length
    return lengths
