"""Examples (ids with labels, such as a conversation whose answers are learned) and their padded batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from bpe_llama._arguments import instance, integer, iterator
from bpe_llama.model.layers.loss import IGNORED
from bpe_llama.model.training.data.batches import Batch, check_ids, integers, short_hash
from bpe_llama.model.training.data.rows import Ids, Row, collate


@dataclass(frozen=True)
class Example:
    """A text as ids and labels: arrays, or what `integers` makes one of.

    Attributes:
        ids: int64 `(n,)`.
        labels: int64 `(n,)`: the id of a learned token, else -100.
    """

    ids: Ids
    labels: Ids

    def __post_init__(self) -> None:
        """Store int64 arrays."""
        object.__setattr__(self, "ids", integers(self.ids, "ids of an example"))
        object.__setattr__(self, "labels", integers(self.labels, "labels of an example"))

    @property
    def learned(self) -> int:
        """Return the number of learned tokens; the first token has no prediction."""
        return int((self.labels[1:] != IGNORED).sum())

    def check(self, vocab_size: int, longest: int) -> None:
        """Raise `ValueError` if it is longer than `longest`, has no token to learn, or an id beyond the vocabulary."""
        if self.ids.shape != self.labels.shape or self.ids.ndim != 1:
            raise ValueError(f"ids have shape {self.ids.shape} and labels {self.labels.shape}; expected (n,) for both")
        if len(self.ids) > longest:
            raise ValueError(f"an example has {len(self.ids):,} tokens, the model's context is {longest:,}")
        if not self.learned:
            raise ValueError(f"an example of {len(self.ids):,} tokens has no token to learn")
        check_ids(self.ids, vocab_size)


def checked_examples(examples: Iterable[Example], kind: type = Example, name: str = "examples") -> Sequence[Example]:
    """Return the argument `name`, a list of examples for another iterable; all must be of a class.

    Raises:
        TypeError: If it is something else, or holds something else.
    """
    expected = f"a list of {kind.__name__}"
    found = examples if isinstance(examples, list | tuple) else list(iterator(name, examples, expected))
    for place, example in enumerate(found):
        instance(f"{name}[{place}]", example, kind, f"an {kind.__name__}" if kind is Example else None)
    return found


class ExampleBatches:
    """Shuffled batches of examples, padded on the right, over any number of epochs.

    Batch `i` depends only on the seed and `i`, so a resumed run needs no saved state. Each epoch visits every example
    once, with its own permutation.

    Raises:
        ValueError: If there is no example.

    Example:
        >>> example = Example(np.array([5, 6, 7]), np.array([-100, 6, 7]))
        >>> batches = ExampleBatches([example, example, example], batch_size=2)
        >>> batches.batch(0).ids.shape, batches.tokens_before(2)
        ((2, 3), 12)
    """

    KIND: ClassVar[type] = Example
    """The class of the examples."""

    def __init__(self, examples: Sequence[Example], *, batch_size: int, seed: int = 0) -> None:
        examples, batch_size = checked_examples(examples, self.KIND), integer("batch_size", batch_size, 1)
        seed = integer("seed", seed)
        if not examples:
            raise ValueError("no examples to train on")
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self._lengths = np.array([len(example.ids) for example in examples])
        self._order = self._shuffled(0)

    @cached_property
    def fingerprint(self) -> str:
        """Return the numbers of examples and of tokens, and a hash of ids and labels."""
        arrays = (part for example in self.examples for part in (example.ids, example.labels))
        tokens = int(self._lengths.sum())
        return f"{len(self.examples):,} texts of {tokens:,} tokens (sha256 {short_hash(self._lengths, *arrays)})"

    def batch(self, index: int) -> Batch:
        """Return batch `index` (from 0), T the length of its longest example."""
        batch = collate([Row(example.ids, example.labels) for example in self.rows(index)])
        return batch if batch.attention_mask is not None else replace(batch, attention_mask=np.ones_like(batch.ids))

    def rows(self, index: int) -> list[Example]:
        """Return the examples of batch `index`."""
        found = []
        for row in range(index * self.batch_size, (index + 1) * self.batch_size):
            epoch, place = divmod(row, len(self.examples))
            if self._order[0] != epoch:
                self._order = self._shuffled(epoch)
            found.append(self.examples[self._order[1][place]])
        return found

    def tokens_before(self, index: int) -> int:
        """Return the number of tokens in the batches before `index`, without padding."""
        epoch, place = divmod(index * self.batch_size, len(self.examples))
        _, order = self._shuffled(epoch)
        return int(epoch * self._lengths.sum() + self._lengths[order[:place]].sum())

    def _shuffled(self, epoch: int) -> tuple[int, npt.NDArray[np.int64]]:
        return epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))
