"""Numbers of tokens of many parts of a text, and of a text that grows."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray

from bpe_llama._arguments import integer, string
from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._encoding.seams import has_seams, seams

_REMEMBERED = 64  # Characters of a part that is worth remembering: longer ones hardly repeat.


class IntervalCounts:
    """Numbers of tokens of any part of a text; made by `Tokenizer.count_intervals`.

    Attributes:
        text: The text.
    """

    def __init__(self, tokenizer: CoreTokenizer, text: str) -> None:
        """Encode the text once."""
        self.text = text
        self._tokenizer = tokenizer
        self._seams = [0, *(seams(text) if has_seams(tokenizer) else ()), len(text)]
        parts = [text[start:end] for start, end in zip(self._seams, self._seams[1:], strict=False)]
        self._counts: list[int] = tokenizer.encode_batch_to_numpy(parts)[1].tolist()

    def count(self, start: int = 0, stop: int | None = None) -> int:
        """Return the number of tokens of ``text[start:stop]`` encoded alone.

        ``start`` and ``stop`` are those of a slice.

        Cost: two searches, and the encoding of the text up to the next seam at either end: a word or so.
        """
        start, stop, _ = slice(start, stop).indices(len(self.text))
        first, last = bisect_left(self._seams, start), bisect_right(self._seams, stop) - 1
        if first > last:
            return self._tokenizer.count(self.text[start:stop])
        head, tail = self.text[start : self._seams[first]], self.text[self._seams[last] : stop]
        between = self._counts[last] - self._counts[first]
        return between + sum(self._tokenizer.count(part) for part in (head, tail) if part)

    def __len__(self) -> int:
        """Return the number of tokens of the whole text."""
        return self._counts[-1]


def prefix_counts(tokenizer: CoreTokenizer, text: str) -> NDArray[np.int64]:
    """Return the number of tokens of each prefix of a text; see `Tokenizer.count_prefixes`."""
    counts = np.empty(len(text) + 1, np.int64)
    counts[0] = start = before = 0
    known: dict[str, list[int]] = {}
    for end in (*(seams(text) if has_seams(tokenizer) else ()), len(text)):
        part = text[start:end]
        of_part = known.get(part)
        if of_part is None:
            of_part = [tokenizer.count(part[:length]) for length in range(1, len(part) + 1)]
            if len(part) <= _REMEMBERED:
                known[part] = of_part
        if of_part:
            counts[start + 1 : end + 1] = of_part
            counts[start + 1 : end + 1] += before
            before += of_part[-1]
        start = end
    return counts


class Appender:
    """The number of tokens of a text that grows; made by `Tokenizer.appender`.

    ``len(appender)`` is ``tok.count`` of all the text that was pushed, as one text.

    Examples:
        >>> from bpe_llama import Tokenizer
        >>> tok = Tokenizer.train_from_iterator(["low lower lowest"] * 3, vocab_size=260, progress=False)
        >>> prompt = tok.appender()
        >>> for text in ["low low", "er", " lowest"]:
        ...     if prompt.push(text) > 3:
        ...         prompt.pop()
        >>> len(prompt), tok.count("low lower")
        (3, 3)
    """

    def __init__(self, tokenizer: CoreTokenizer) -> None:
        """Begin with no text."""
        self._tokenizer = tokenizer
        self._has_seams = has_seams(tokenizer)
        # After each push: the tokens before the last seam, the text behind it, and the number of its tokens.
        self._states = [(0, "", 0)]

    def push(self, text: str) -> int:
        """Append text, and return the number of tokens of all text.

        Cost: linear in ``text`` and what was pushed since the last seam; in all text if the tokenizer has no seams.

        Raises:
            TypeError: If ``text`` is no ``str``.
            ValueError: If a byte of the text has no token. The text is then as before.
        """
        string("text", text)
        before, tail, _ = self._states[-1]
        start, tail = max(len(tail) - 1, 0), tail + text
        seam = 0
        if self._has_seams:
            for seam in seams(tail, start):  # noqa: B007  # the last one is wanted
                pass
        if seam:
            before += self._tokenizer.count(tail[:seam])
            tail = tail[seam:]
        self._states.append((before, tail, self._tokenizer.count(tail)))
        return len(self)

    def pop(self, pushes: int = 1) -> None:
        """Take back the last pushes.

        Cost: constant.

        Raises:
            IndexError: If there were fewer.
        """
        if not 0 <= integer("pushes", pushes) < len(self._states):
            raise IndexError(f"cannot take back {pushes} pushes: there were {len(self._states) - 1}")
        del self._states[len(self._states) - pushes :]

    def __len__(self) -> int:
        """Return the number of tokens of all text that was pushed and not taken back."""
        before, _, behind = self._states[-1]
        return before + behind
