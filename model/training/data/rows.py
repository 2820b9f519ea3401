"""Shuffled rows of a corpus or of several mixed by weight, and batches of rows; a row is a function of seed and index.

Packed documents are in `packing`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bpe_llama._arguments import integer
from bpe_llama._corpus.corpus import Tokens
from bpe_llama.model.layers.loss import IGNORED
from bpe_llama.model.training.data.batches import Batch, checked_window, short_hash

Ids = npt.NDArray[np.int64]
_HASHED = 1 << 16  # tokens per hashed range
_RANGE = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, odd


class Row(NamedTuple):
    """One row of a batch, without padding; the fields are those of `Batch`, int64 (n,)."""

    ids: Ids
    labels: Ids
    document_ids: Ids | None = None


@dataclass(eq=False)
class CorpusRows:
    """Rows of one corpus by index, from 0, over any number of epochs; `Windows` and `PackedRows` say how they are cut.

    Attributes:
        tokens: The ids, (n,).
        starts: Where each document begins, and n; None if they are not told apart.
        window: Most tokens of a row.
        vocab_size: That of the model.
        seed: Of the order.
        mask: With `starts`: number the documents in a row, so that attention does not cross them.
        name: Of the corpus.
        stream: Tells apart corpora that are shuffled with the same seed.
        rows_per_epoch: Rows after which every token was seen once, which a subclass sets.
    """

    tokens: Tokens
    starts: Ids | None = None
    _: KW_ONLY
    window: int
    vocab_size: int
    seed: int = 0
    mask: bool = True
    name: str = ""
    stream: int = 0
    rows_per_epoch: int = field(init=False)

    def __post_init__(self) -> None:
        raise NotImplementedError

    @cached_property
    def fingerprint(self) -> str:
        """Return the number of tokens, and a hash of 16 evenly spaced ranges of them and of the documents' starts."""
        last = max(0, len(self.tokens) - _HASHED)
        places = (last * part // 15 for part in range(16))
        ranges = [self.tokens[place : place + _HASHED] for place in places]
        starts = [] if self.starts is None else [self.starts]
        return f"{len(self.tokens):,} tokens (sha256 {short_hash(*ranges, *starts)})"

    def row(self, index: int) -> Row:
        """Return row `index`, which depends on the index alone."""
        raise NotImplementedError

    def tokens_before(self, index: int) -> int:
        """Return the number of tokens in the rows before `index`."""
        raise NotImplementedError

    def epochs(self, index: int) -> dict[str, float]:
        """Return how often the rows before `index` pass over the data."""
        return {self.name: index / self.rows_per_epoch}

    def _random(self, epoch: int, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, self.stream, *purpose])


class Windows(CorpusRows):
    """Windows of `window` consecutive tokens, each once an epoch, in an order and with an offset of the epoch's own."""

    def __post_init__(self) -> None:
        integer("window", self.window, 1)
        if len(self.tokens) < self.window:
            of = f"{self.name}: " if self.name else ""
            raise ValueError(f"{of}{len(self.tokens):,} tokens, expected at least one window of {self.window:,}")
        # One window fewer than fit, so that the offset can vary.
        self.rows_per_epoch = max(1, len(self.tokens) // self.window - 1)
        self._order = self._shuffled(0)

    def row(self, index: int) -> Row:
        """Return row `index`, of which every token is learned but the first of a document."""
        epoch, place = divmod(index, self.rows_per_epoch)
        if self._order[0] != epoch:
            self._order = self._shuffled(epoch)
        _, shift, order = self._order
        begin = shift + int(order[place]) * self.window
        ids = checked_window(self.tokens, begin, self.window, self.vocab_size)
        if self.starts is None or not self.mask:
            return Row(ids, ids)
        inside = slice(*np.searchsorted(self.starts, (begin, begin + self.window)))
        first = np.zeros(self.window, dtype=np.int64)
        first[self.starts[inside] - begin] = 1
        return Row(ids, np.where(first, IGNORED, ids), first.cumsum())

    def tokens_before(self, index: int) -> int:
        """Return the number of tokens in the rows before `index`."""
        return index * self.window

    def _shuffled(self, epoch: int) -> tuple[int, int, Ids]:
        """Return the epoch, the offset of its first window, and the order of its windows."""
        random = self._random(epoch)
        spare = len(self.tokens) - self.rows_per_epoch * self.window
        return epoch, int(random.integers(min(spare, self.window) + 1)), random.permutation(self.rows_per_epoch)


class Mixture:
    """Rows of several corpora, each with its own epochs; the share of a corpus among the rows is its weight.

    Row `i` is of the corpus in whose interval of [0, 1) the fractional part of ``offset + i / golden ratio`` lies. Of
    any `n` consecutive rows a corpus has its share within a few rows, so every batch is close to the weights.

    The corpora have one window. The weights are positive, and only their ratios matter.

    Source: Weyl 1916, Math. Ann. 77, 313 (equidistribution); Knuth, TAOCP 3, 6.4 (golden ratio).
    """

    def __init__(self, corpora: Sequence[CorpusRows], weights: Sequence[float], seed: int = 0) -> None:
        self.corpora, self.window = corpora, corpora[0].window
        total = math.fsum(weights)
        self.shares = [weight / total for weight in weights]
        self._bounds = [0, *(round(_RANGE * share) for share in accumulate(self.shares))]
        self._bounds[-1] = _RANGE
        self._offset = int(np.random.SeedSequence([seed, len(weights)]).generate_state(1, np.uint64)[0])
        self._next = 0, [0] * len(weights)  # of the row that follows the last one
        longest = max(corpus.rows_per_epoch / share for corpus, share in zip(corpora, self.shares, strict=True))
        self.rows_per_epoch = math.ceil(longest)

    @property
    def fingerprint(self) -> str:
        """Return the share and the fingerprint of each corpus."""
        parts = zip(self.shares, self.corpora, strict=True)
        return " + ".join(f"{share:.6g} of {corpus.fingerprint}" for share, corpus in parts)

    def place(self, index: int) -> tuple[int, int]:
        """Return the number of the corpus of row `index`, and the row's index in it."""
        if self._next[0] != index:
            self._next = index, self.counts(index)
        counts = self._next[1]
        corpus = bisect_right(self._bounds, (_GOLDEN * index + self._offset) % _RANGE) - 1
        following = [count + (number == corpus) for number, count in enumerate(counts)]
        self._next = index + 1, following
        return corpus, counts[corpus]

    def counts(self, index: int) -> list[int]:
        """Return how many of the rows before `index` are of each corpus."""
        below = [count_below(index, bound, _GOLDEN, self._offset, _RANGE) for bound in self._bounds]
        return [later - earlier for earlier, later in pairwise(below)]

    def row(self, index: int) -> Row:
        """Return row `index`."""
        corpus, place = self.place(index)
        return self.corpora[corpus].row(place)

    def tokens_before(self, index: int) -> int:
        """Return the number of tokens in the rows before `index`."""
        return sum(corpus.tokens_before(n) for corpus, n in zip(self.corpora, self.counts(index), strict=True))

    def epochs(self, index: int) -> dict[str, float]:
        """Return how often the rows before `index` pass over each corpus, by its name."""
        passes = zip(self.corpora, self.counts(index), strict=True)
        return {name: value for corpus, n in passes for name, value in corpus.epochs(n).items()}


def count_below(n: int, bound: int, step: int, offset: int, modulus: int) -> int:
    """Return how many `i` in [0, n) have ``(step * i + offset) % modulus < bound``, in O(log modulus).

    Example:
        >>> count_below(10, 2, 3, 1, 7), sum((3 * i + 1) % 7 < 2 for i in range(10))
        (4, 4)
    """
    shifted = offset - bound + modulus  # x % m < b exactly if floor(x / m) - floor((x - b) / m) is 1
    return _floor_sum(n, modulus, step, offset) - _floor_sum(n, modulus, step, shifted) + n


def _floor_sum(n: int, m: int, a: int, b: int) -> int:
    """Return the sum of ``(a * i + b) // m`` for `i` in [0, n); Graham, Knuth, Patashnik, Concrete Mathematics, 3.5."""
    total = 0
    while n > 0:
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        n, b, m, a = (a * n + b) // m, (a * n + b) % m, a, m
    return total


Rows = CorpusRows | Mixture


class RowBatches:
    """Batches of `batch_size` rows, padded on the right to the rows' `window`, over any number of epochs.

    Padding has the id 0, the label -100, the mask 0 and a document of its own.
    """

    def __init__(self, rows: Rows, batch_size: int) -> None:
        self.data, self.batch_size = rows, batch_size

    @property
    def fingerprint(self) -> str:
        """Return the size and a hash of the data."""
        return self.data.fingerprint

    def batch(self, index: int) -> Batch:
        """Return batch `index` (from 0)."""
        first = index * self.batch_size
        return collate([self.data.row(row) for row in range(first, first + self.batch_size)], self.data.window)

    def tokens_before(self, index: int) -> int:
        """Return the number of tokens in the batches before `index`, without padding."""
        return self.data.tokens_before(index * self.batch_size)

    def epochs(self, index: int) -> dict[str, float]:
        """Return how often the batches before `index` pass over each corpus, by its name."""
        return self.data.epochs(index * self.batch_size)

    def padding_share(self, index: int) -> float:
        """Return the share of padding in the batches before `index`."""
        columns = index * self.batch_size * self.data.window
        return 1 - self.tokens_before(index) / columns if columns else 0.0


class TokenBatches(RowBatches):
    """Shuffled batches of windows of a token array, over any number of epochs.

    Batch `i` depends only on the seed and `i`, so a resumed run needs no saved state. Each epoch visits every window
    once, with its own permutation and its own offset of the first window. Ids must be below `vocab_size`.

    Raises:
        ValueError: If the array is shorter than one window.

    Example:
        >>> batches = TokenBatches(np.arange(1000, dtype=np.uint16), window=8, batch_size=4, vocab_size=1000)
        >>> batches.batch(0).ids.shape
        (4, 8)
    """

    def __init__(self, tokens: Tokens, *, window: int, batch_size: int, vocab_size: int, seed: int = 0) -> None:
        seed, batch_size = integer("seed", seed), integer("batch_size", batch_size, 1)
        super().__init__(Windows(tokens, window=window, vocab_size=vocab_size, seed=seed), batch_size)


def first_windows(tokens: Tokens, window: int, batch_size: int, most: int, vocab_size: int) -> Iterator[Batch]:
    """Yield the first `most` windows of the tokens in order, as batches.

    A shorter rest is left out unless there is no other window.

    Example:
        >>> [batch.ids.tolist() for batch in first_windows(np.arange(7), 2, batch_size=2, most=9, vocab_size=7)]
        [[[0, 1], [2, 3]], [[4, 5]]]
    """
    width = min(window, len(tokens))
    count = min(len(tokens) // width, most)
    for first in range(0, count, batch_size):
        rows = range(first, min(first + batch_size, count))
        ids = np.stack([checked_window(tokens, row * width, width, vocab_size) for row in rows])
        yield Batch(ids, ids)


def collate(rows: Sequence[Row], window: int | None = None) -> Batch:
    """Return rows as one batch of `window` columns, by default as many as the longest row has.

    Example:
        >>> collate([Row(np.array([5, 6]), np.array([5, 6]), np.array([0, 1]))], 3).document_ids
        array([[0, 1, 2]])
    """
    lengths = np.array([len(row.ids) for row in rows])
    present = np.arange(window or lengths.max()) < lengths[:, None]
    ids, labels = (np.full(present.shape, fill, dtype=np.int64) for fill in (0, IGNORED))
    ids[present] = np.concatenate([row.ids for row in rows])
    labels[present] = np.concatenate([row.labels for row in rows])
    documents = [row.document_ids for row in rows if row.document_ids is not None]
    document_ids = None
    if documents:
        document_ids = np.tile(np.array([marks[-1] + 1 for marks in documents])[:, None], present.shape[1])
        document_ids[present] = np.concatenate(documents)
    return Batch(ids, labels, None if present.all() else present.astype(np.int64), document_ids)
