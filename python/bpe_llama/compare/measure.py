"""Measure tokenizers on texts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bpe_llama._arguments import instance, iterator, string, wrong
from bpe_llama._core import shown
from bpe_llama.compare.others import OtherTokenizer
from bpe_llama.tokenizer import Tokenizer

_ROUNDS, _SECONDS = 5, 0.5
_TOTAL = "total"
_PAIRS = "a list of pairs of a name and a text"
# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, kana and Han.
_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_ALONE}]|[^\s{_ALONE}]+")


@dataclass(frozen=True)
class Figures:
    """What one tokenizer makes of one text.

    Attributes:
        tokenizer: The tokenizer's name.
        text: The text's name; ``"total"`` for all texts together.
        num_bytes: Size of the text in UTF-8.
        num_words: Runs of characters between white space; in scripts without spaces, such as Chinese, characters.
        tokens: Number of tokens, without special tokens around the text.
        single_bytes: Tokens that are one byte long: what is left of text that the vocabulary does not know, and
            letters, digits and signs on their own.
        unknown: Tokens that stand for text that has no token; it is lost. Always 0 for byte-level vocabularies.
        seconds: Time to encode the text once on one thread, the best of up to five rounds.
    """

    tokenizer: str
    text: str
    num_bytes: int
    num_words: int
    tokens: int
    single_bytes: int
    unknown: int
    seconds: float

    @property
    def bytes_per_token(self) -> float:
        """Bytes a token; 0 without tokens."""
        return self.num_bytes / self.tokens if self.tokens else 0.0

    @property
    def fertility(self) -> float:
        """Tokens a word; 0 without words."""
        return self.tokens / self.num_words if self.num_words else 0.0

    @property
    def single_byte_share(self) -> float:
        """Fraction of the tokens that are one byte long; 0 without tokens."""
        return self.single_bytes / self.tokens if self.tokens else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return all figures by name, for JSON."""
        derived = ("bytes_per_token", "fertility", "single_byte_share")
        return asdict(self) | {name: getattr(self, name) for name in derived}


@dataclass(frozen=True)
class Comparison:
    """The figures of tokenizers on texts.

    Attributes:
        tokenizers: Names of the tokenizers.
        texts: Names of the texts, ``"total"`` last if there are several.
        figures: For each text the figures of each tokenizer, in these orders.
        shared: Number of tokens, as bytes, that are in all vocabularies; ``None`` with an `OtherTokenizer`.
        only: For each tokenizer the tokens that no other one has, longest first; ``None`` likewise.
    """

    tokenizers: tuple[str, ...]
    texts: tuple[str, ...]
    figures: tuple[tuple[Figures, ...], ...]
    shared: int | None
    only: tuple[tuple[bytes, ...], ...] | None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as a list of objects, for JSON."""
        return {"figures": [each.to_dict() for row in self.figures for each in row], "shared_tokens": self.shared}


def compare(tokenizers: Mapping[str, Tokenizer | OtherTokenizer], texts: Iterable[tuple[str, str]]) -> Comparison:
    """Return the figures of tokenizers on named texts.

    Args:
        tokenizers: Names to tokenizers, ours or those of `open_any`.
        texts: Pairs of a name and a text, such as one a language.

    Raises:
        TypeError: If `texts` holds other than pairs of `str`.
        ValueError: If there is no tokenizer or no text, or one of several texts has the name ``"total"``.

    Examples:
        >>> ranks = {bytes([byte]): byte for byte in range(256)}
        >>> a, b = Tokenizer.from_ranks(ranks), Tokenizer.from_ranks(ranks | {b"ab": 256})
        >>> found = compare({"a": a, "b": b}, [("all", "abab ab")])
        >>> [(row.tokens, row.fertility, row.single_bytes) for row in found.figures[0]]
        [(7, 3.5, 7), (4, 2.0, 1)]
    """
    instance("tokenizers", tokenizers, Mapping, "a mapping of names to tokenizers")
    for name, tokenizer in tokenizers.items():
        instance(f"tokenizers[{shown(name)}]", tokenizer, (Tokenizer, OtherTokenizer), "a Tokenizer")
    if not tokenizers:
        raise ValueError("there is no tokenizer to compare")
    named = [_checked(index, pair) for index, pair in enumerate(iterator("texts", texts, _PAIRS))]
    if not named:
        raise ValueError("there is no text to compare on")
    if len(named) > 1 and any(title == _TOTAL for title, _ in named):
        raise ValueError(f"texts holds one with the name {_TOTAL!r}, which the sum of all has; expected another name")
    rows = [tuple(_measure(name, tokenizer, *text) for name, tokenizer in tokenizers.items()) for text in named]
    if len(rows) > 1:
        rows.append(tuple(_total(column) for column in zip(*rows, strict=True)))
    shared, only = _vocabularies(list(tokenizers.values()))
    return Comparison(tuple(tokenizers), tuple(row[0].text for row in rows), tuple(rows), shared, only)


def _checked(index: int, pair: object) -> tuple[str, str]:
    """Return a pair of a name and a text."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(wrong(f"texts[{index}]", pair, "a pair of a name and a text"))
    return string(f"texts[{index}][0]", pair[0]), string(f"texts[{index}][1]", pair[1])


def _measure(name: str, tokenizer: Tokenizer | OtherTokenizer, title: str, text: str) -> Figures:
    """Return the figures of one tokenizer on one text."""
    encode: Callable[[str], Any] = (
        tokenizer.encode if isinstance(tokenizer, OtherTokenizer) else tokenizer.encode_to_numpy
    )
    began = time.perf_counter()
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        ids = encode(text)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - began > _SECONDS:
            break
    distinct, counts = np.unique(np.asarray(ids, dtype=np.int64), return_counts=True)
    if isinstance(tokenizer, OtherTokenizer):
        sizes = [tokenizer.num_bytes(int(token_id)) for token_id in distinct]
        unknown_id = tokenizer.unknown_id
    else:
        sizes = [len(tokenizer.id_to_bytes(int(token_id))) for token_id in distinct]
        unknown_id = tokenizer.unk_id
    single = sum(int(count) for size, count in zip(sizes, counts, strict=True) if size == 1)
    unknown = sum(int(count) for token_id, count in zip(distinct, counts, strict=True) if token_id == unknown_id)
    size = len(text.encode("utf-8", "replace"))
    return Figures(name, title, size, len(_WORD.findall(text)), int(counts.sum()), single, unknown, best)


def _total(column: Sequence[Figures]) -> Figures:
    """Return the sums of one tokenizer over all texts."""
    names = ("num_bytes", "num_words", "tokens", "single_bytes", "unknown")
    sums = {name: sum(getattr(each, name) for each in column) for name in names}
    return Figures(column[0].tokenizer, _TOTAL, **sums, seconds=sum(each.seconds for each in column))


def _vocabularies(
    tokenizers: Sequence[Tokenizer | OtherTokenizer],
) -> tuple[int | None, tuple[tuple[bytes, ...], ...] | None]:
    """Return the number of tokens that all vocabularies have, and of tokens that only one has."""
    ours = [set(each.mergeable_ranks) for each in tokenizers if isinstance(each, Tokenizer)]
    if len(ours) < len(tokenizers):
        return None, None
    only = []
    for index, tokens in enumerate(ours):
        left = tokens.difference(*(other for place, other in enumerate(ours) if place != index))
        only.append(tuple(sorted(left, key=lambda token: (-len(token), token))))
    return len(set.intersection(*ours)), tuple(only)
