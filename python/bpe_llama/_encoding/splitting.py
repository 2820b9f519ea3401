"""Cut a text by numbers of tokens: its end, or chunks of it."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from bpe_llama._arguments import one_of
from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._core import shown

_LEVELS = ("line", "word", "token", "character")
_PAIR = re.compile("[\ud800-\udbff](?=[\udc00-\udfff])")


def token_starts(tokenizer: CoreTokenizer, text: str, allowed_special: Iterable[str]) -> tuple[list[int], list[bool]]:
    """Return where each token of a text begins, and whether between two characters: no token before has part of it."""
    _, offsets = tokenizer.encode_with_offsets(text, allowed_special=allowed_special)
    starts: list[int] = []
    is_whole, end = [], 0
    for start, stop in offsets:
        is_whole.append(start >= end)
        # White space that `trim_offsets` leaves out belongs to the token behind it.
        starts.append(end if start >= end else max(start, starts[-1]))
        end = max(end, stop)
    return starts, is_whole


def last_tokens(tokenizer: CoreTokenizer, text: str, max_tokens: int, allowed_special: Iterable[str]) -> str:
    """Return the end of a text that has at most some tokens; see `Tokenizer.truncate`."""
    starts, is_whole = token_starts(tokenizer, text, allowed_special)
    if len(starts) <= max_tokens:
        return text
    for index in range(len(starts) - max_tokens, len(starts)):
        end = text[starts[index] :]
        if is_whole[index] and tokenizer.count(end, allowed_special=allowed_special) <= max_tokens:
            return end
    return ""


class Splitter:
    """One text, its tokens and boundaries; see `Tokenizer.split_by_tokens`."""

    def __init__(self, tokenizer: CoreTokenizer, text: str, max_tokens: int, overlap: int, boundary: str) -> None:
        """Encode the text, and find the boundaries of each level.

        Raises:
            ValueError: If a number is out of range, or the boundary unknown.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {shown(max_tokens)}; it must be at least 1")
        if not 0 <= overlap < max_tokens:
            least = f"it must be at least 0 and less than max_tokens, {shown(max_tokens)}"
            raise ValueError(f"overlap is {shown(overlap)}; {least}")
        one_of("boundary", boundary, _LEVELS)
        self._tokenizer, self._max_tokens, self._overlap = tokenizer, max_tokens, overlap
        self._text = text
        self._starts, is_whole = token_starts(tokenizer, text, ())
        self._levels: list[Sequence[int]] = []
        for level in _LEVELS[_LEVELS.index(boundary) :]:
            places: Iterable[int]
            if level == "line":
                places = [at for at in range(1, len(text)) if text[at - 1] == "\n"]
            elif level == "word":
                places = [at for at in range(1, len(text)) if text[at - 1].isspace() or text[at].isspace()]
            elif level == "token":
                places = dict.fromkeys(start for start, whole in zip(self._starts, is_whole, strict=True) if whole)
            else:
                pairs = {found.end() for found in _PAIR.finditer(text)}  # a pair of surrogates is one character
                ends = range(len(text) + 1)
                self._levels.append([end for end in ends if end not in pairs] if pairs else ends)
                break
            self._levels.append([*places, len(text)])

    def chunks(self) -> list[str]:
        """Return the chunks."""
        chunks, start, stop = [], 0, 0
        while stop < len(self._text):
            start, stop = self._next(start, stop)
            chunks.append(self._text[start:stop])
        return chunks

    def _next(self, start: int, stop: int) -> tuple[int, int]:
        """Return the chunk after one: it begins where the overlap does, and ends later."""
        if self._overlap and stop:
            boundaries = self._levels[0]
            first = self._starts[max(bisect_left(self._starts, stop) - self._overlap, 0)]
            for index in range(bisect_left(boundaries, max(first, start + 1)), bisect_left(boundaries, stop)):
                place = boundaries[index]
                if self._tokenizer.count(self._text[place:stop]) <= self._overlap:
                    end = self._end(place)
                    if end is not None and end > stop:
                        return place, end
        end = self._end(stop)
        if end is None:
            raise ValueError(
                f"max_tokens is {self._max_tokens}, but the character {self._text[stop]!r} at {stop} alone has "
                f"{self._tokenizer.count(self._text[stop])} tokens"
            )
        return stop, end

    def _end(self, start: int) -> int | None:
        """Return the last boundary within the next tokens up to which the text alone has at most `max_tokens`."""
        last = bisect_left(self._starts, start) + self._max_tokens
        limit = self._starts[last] if last < len(self._starts) else len(self._text)
        for boundaries in self._levels:
            for index in range(bisect_right(boundaries, limit) - 1, -1, -1):
                if (end := boundaries[index]) <= start:
                    break
                if self._tokenizer.count(self._text[start:end]) <= self._max_tokens:
                    return end
        return None
