"""Several corpora mixed by weight: the corpus of a row is a function of seed and index."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from bpe_llama.model.training.data.rows import Row, Rows

_RANGE = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, odd


class Mixture:
    """Rows of several corpora, each with its own epochs; the share of a corpus among the rows is its weight.

    Row `i` is of the corpus in whose interval of [0, 1) the fractional part of ``offset + i / golden ratio`` lies. Of
    any `n` consecutive rows a corpus has its share within a few rows, so every batch is close to the weights.

    The corpora have one window. The weights are positive, and only their ratios matter.

    Source: Weyl 1916, Math. Ann. 77, 313 (equidistribution); Knuth, TAOCP 3, 6.4 (golden ratio).
    """

    def __init__(self, corpora: Sequence[Rows], weights: Sequence[float], seed: int = 0) -> None:
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
