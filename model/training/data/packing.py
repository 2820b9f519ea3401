"""Whole documents packed into rows by best fit: no document is cut unless it is longer than a row.

Source: Ding et al. 2024, arXiv:2404.10830 (best-fit packing).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bpe_llama.model.layers.loss import IGNORED
from bpe_llama.model.training.data.batches import checked_window
from bpe_llama.model.training.data.rows import CorpusRows, Ids, Row

Pattern = tuple[tuple[int, int], ...]
"""The lengths of the documents in a row, and how many there are of each."""


def best_fit(counts: Sequence[int], window: int) -> list[tuple[Pattern, int]]:
    """Return the rows that best-fit decreasing makes of documents: patterns, and how many rows have each.

    Documents are placed by falling length, each in the row with the least space that suffices. Which document of a
    length is placed does not matter, so equal rows are one entry, and the cost does not grow with the documents.

    Args:
        counts: How many documents have each length, from 0 to `window`.
        window: Tokens per row.

    Example:
        >>> best_fit([0, 3, 0, 1, 2], 4)
        [(((4, 1),), 2), (((3, 1), (1, 1)), 1), (((1, 2),), 1)]
    """
    rows: dict[int, list[tuple[Pattern, int]]] = {window: []}  # by space left
    spaces: list[int] = []  # of rows, rising

    def add(space: int, pattern: Pattern, count: int) -> None:
        if not rows.setdefault(space, []) and space < window:
            insort(spaces, space)
        rows[space].append((pattern, count))

    for length in range(window, 0, -1):
        left = int(counts[length])
        while left:
            found = bisect_left(spaces, length)
            space = spaces[found] if found < len(spaces) else window
            pattern, available = rows[space].pop() if space < window else ((), left)
            if space < window and not rows[space]:
                spaces.pop(found)
            # A row that takes one takes all that fit: its space stays the least that suffices.
            each = space // length
            full = min(available, left // each)
            if full:
                add(space - each * length, (*pattern, (length, each)), full)
                left, available = left - full * each, available - full
            if left and left < each and available:
                add(space - left * length, (*pattern, (length, left)), 1)
                left, available = 0, available - 1
            if available and space < window:
                add(space, pattern, available)
    return [entry for space in sorted(rows) for entry in rows[space]]


class PackedRows(CorpusRows):
    """Rows of whole documents, in an order and a combination of each epoch's own.

    A document longer than `window` is cut into pieces of `window` tokens and a rest. Every epoch has each piece once.
    Rows begin with a document or a piece.

    Example:
        >>> rows = PackedRows(np.arange(10), np.array([0, 3, 4, 10]), window=4, vocab_size=10)
        >>> rows.rows_per_epoch, sorted(map(int, np.concatenate([rows.row(index).ids for index in range(3)])))
        (3, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])

    Cost: 40 bytes a document. The plan of an epoch takes about a second for 1e6 documents.
    """

    starts: Ids

    def __post_init__(self) -> None:
        self._begins, self._lengths = _pieces(self.starts, self.window)
        self._slot_row, sizes = _slots(np.bincount(self._lengths, minlength=self.window + 1), self.window)
        self.rows_per_epoch = len(sizes)
        self._sizes, self._order, self._tokens_of = sizes, self._planned(0), (-1, sizes)

    def row(self, index: int) -> Row:
        """Return row `index`, of which every token is learned but the first of a piece."""
        epoch, place = divmod(index, self.rows_per_epoch)
        if self._order[0] != epoch:
            self._order = self._planned(epoch)
        _, pieces, ends, order = self._order
        row = int(order[place])
        chosen = pieces[ends[row] : ends[row + 1]]
        lengths = self._lengths[chosen].astype(np.int64)
        ids = np.concatenate(
            [
                checked_window(self.tokens, int(begin), int(length), self.vocab_size)
                for begin, length in zip(self._begins[chosen], lengths, strict=True)
            ]
        )
        if not self.mask:
            return Row(ids, ids)
        labels = ids.copy()
        labels[lengths.cumsum() - lengths] = IGNORED
        return Row(ids, labels, np.repeat(np.arange(len(lengths)), lengths))

    def tokens_before(self, index: int) -> int:
        """Return the number of tokens in the rows before `index`."""
        epoch, place = divmod(index, self.rows_per_epoch)
        before = self._tokens_of
        if before[0] != epoch:
            before = (epoch, np.cumsum(self._sizes[self._row_order(epoch)]))
            self._tokens_of = before
        return epoch * int(self._sizes.sum()) + (int(before[1][place - 1]) if place else 0)

    def _row_order(self, epoch: int) -> Ids:
        return self._random(epoch, 1).permutation(self.rows_per_epoch)

    def _planned(self, epoch: int) -> tuple[int, Ids, Ids, Ids]:
        """Return the epoch, its pieces row by row, where each row begins among them, and the order of the rows."""
        random = self._random(epoch)
        pieces = random.permutation(len(self._lengths))
        # Slots are by falling length; a random piece of its length goes to each.
        pieces = pieces[np.argsort(self.window - self._lengths[pieces], kind="stable")]
        shuffled = random.permutation(len(pieces))
        by_row = shuffled[np.argsort(self._slot_row[shuffled], kind="stable")]
        ends = np.concatenate([[0], np.cumsum(np.bincount(self._slot_row, minlength=self.rows_per_epoch))])
        return epoch, pieces[by_row], ends, self._row_order(epoch)


def _pieces(starts: Ids, window: int) -> tuple[Ids, npt.NDArray[np.uint16] | Ids]:
    """Return where each piece begins and its length: documents, those of more than `window` tokens cut."""
    lengths = np.diff(starts)
    counts = -(-lengths // window)  # 0 for an empty document
    begins = np.repeat(starts[:-1], counts)
    within = np.arange(len(begins)) - np.repeat(np.cumsum(counts) - counts, counts)
    begins = begins + within * window
    sizes = np.minimum(np.repeat(starts[1:], counts) - begins, window)
    return begins, sizes.astype(np.uint16) if window < 1 << 16 else sizes  # numpy sorts uint16 by radix


def _slots(counts: Ids, window: int) -> tuple[npt.NDArray[np.int32], Ids]:
    """Return the row of each slot, by falling length of the slots, and the number of tokens of each row."""
    by_length: list[list[Ids]] = [[] for _ in range(window + 1)]
    sizes, first = [], 0
    for pattern, number in best_fit(counts.tolist(), window):
        rows = np.arange(first, first + number, dtype=np.int32)
        for length, each in pattern:
            by_length[length].append(np.repeat(rows, each))
        sizes.append(np.full(number, sum(length * each for length, each in pattern), dtype=np.int64))
        first += number
    slots = [part for parts in reversed(by_length) for part in parts]
    return np.concatenate(slots), np.concatenate(sizes)
