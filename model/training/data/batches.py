"""What a batch is, and what a data set is to the training loop."""

from __future__ import annotations

import hashlib
from dataclasses import MISSING, dataclass, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bpe_llama._corpus.corpus import Tokens
from bpe_llama.model.layers.loss import IGNORED


def integers(value: Any, what: str) -> npt.NDArray[np.int64]:
    """Return an array, a tensor or a list of integers as an int64 array.

    Raises:
        ValueError: If it holds anything else; it says `what` does.

    Example:
        >>> integers([1, 2], "ids").dtype
        dtype('int64')
    """
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (RuntimeError, TypeError, ValueError) as error:  # a tensor without data, a list of unequal rows
        raise ValueError(f"{what} are no array of integers: {error}") from None
    if array.dtype.kind not in "iub":
        raise ValueError(f"{what} have dtype {array.dtype}; expected integers")
    return array.astype(np.int64, copy=False)


@dataclass(frozen=True)
class Batch:
    """The rows of one micro-batch: arrays, or what `integers` makes one of.

    Attributes:
        ids: int64 `(B, T)`.
        labels: int64 `(B, T)`: the id of a learned token, else -100; the model shifts them. Or `(B,)`: one label a row.
        attention_mask: int64 `(B, T)`, 0 for padding; None without padding.
        document_ids: int64 `(B, T)`: the number of a token's document in its row. Attention does not cross documents,
            and positions restart. None if each row is one document.
    """

    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64] | None = None
    document_ids: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        """Store int64 arrays."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is MISSING:
                object.__setattr__(self, field.name, integers(value, f"{field.name} of a batch"))

    @property
    def learned(self) -> int:
        """Return the number of learned tokens, or labels; the first token of a row has no prediction.

        Example:
            >>> Batch(np.array([[5, 6, 7], [6, 7, 8]]), np.array([[5, 6, -100], [-100, 7, 8]])).learned
            3
        """
        return int((self.targets != IGNORED).sum())

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """Return the labels with a prediction, `(B, T - 1)`, -100 where a document begins; or one label a row, `(B,)`.

        Example:
            >>> Batch(*[np.array([[5, 6, 7]])] * 2, document_ids=np.array([[0, 1, 1]])).targets
            array([[-100,    7]])
        """
        if self.labels.ndim == 1:
            return self.labels
        if self.document_ids is None:
            return self.labels[:, 1:]
        return np.where(np.diff(self.document_ids) != 0, IGNORED, self.labels[:, 1:])

    @property
    def padded_left(self) -> bool:
        """Return whether padding stands on the left of a token.

        Example:
            >>> [Batch(*[np.ones((1, 3), int)] * 2, np.array([mask])).padded_left for mask in ([0, 1, 1], [1, 1, 0])]
            [True, False]
        """
        mask = self.attention_mask
        return mask is not None and bool(((mask[:, :-1] == 0) & (mask[:, 1:] != 0)).any())

    def bytes(self, token_bytes: npt.NDArray[np.int64] | None) -> int:
        """Return the bytes of the learned tokens, by the bytes of each id; 0 if these are unknown."""
        if token_bytes is None:
            return 0
        return int(token_bytes[self.targets[self.targets != IGNORED]].sum())

    def without_bytes(self, token_bytes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the indices into the flattened `targets` of ids without bytes, such as EOS: int64 `(n,)`."""
        targets = self.targets.ravel()
        return np.flatnonzero((targets != IGNORED) & (token_bytes[targets.clip(min=0)] == 0))

    def rows(self, rank: int, world: int) -> Batch:
        """Return the rows of one of `world` processes: `B / world` each, one more for the first ones if it is uneven.

        Raises:
            ValueError: If there are more processes than rows.

        Example:
            >>> batch = Batch(*[np.arange(5)[:, None]] * 2)
            >>> [batch.rows(rank, 2).ids.ravel().tolist() for rank in (0, 1)]
            [[0, 1, 2], [3, 4]]
        """
        if len(self.ids) < world:
            raise ValueError(
                f"{world} ranks share micro-batches of {len(self.ids)} rows; expected a batch_size of at least {world}"
            )
        least, more = divmod(len(self.ids), world)
        first = rank * least + min(rank, more)
        part = slice(first, first + least + (rank < more))
        arrays = (self.ids, self.labels, self.attention_mask, self.document_ids)
        return Batch(*(None if array is None else array[part] for array in arrays))  # type: ignore[arg-type]


class Batches(Protocol):
    """A data set as the training loop sees it: batches by index, from 0, over any number of epochs."""

    @property
    def fingerprint(self) -> str:
        """Return the size and a hash of the data."""

    def batch(self, index: int) -> Batch:
        """Return batch `index`, which depends on the index alone, so that a resumed run needs no saved state."""

    def tokens_before(self, index: int) -> int:
        """Return the number of tokens in the batches before `index`, without padding."""


def epochs_of(batches: Batches, index: int) -> dict[str, float]:
    """Return the passes over the data before batch `index` as metrics, if the data tell: `epochs`, or `epochs/corpus`.

    The share of padding, if there is any, is `padding`.
    """
    passes: dict[str, float] = getattr(batches, "epochs", lambda index: {})(index)
    padding: float = getattr(batches, "padding_share", lambda index: 0.0)(index)
    metrics = {"padding": round(padding, 5)} if padding else {}
    for name, value in passes.items():
        metrics[f"epochs/{name}" if len(passes) > 1 else "epochs"] = round(value, 4)
    return metrics


def short_hash(*arrays: npt.NDArray[Any]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the arrays' values as int64.

    Example:
        >>> short_hash(np.arange(3)) == short_hash(np.arange(3, dtype=np.uint16)) != short_hash(np.arange(4))
        True
    """
    found = hashlib.sha256()
    for array in arrays:
        found.update(array.astype("<i8").tobytes())
    return found.hexdigest()[:16]


def check_ids(ids: npt.NDArray[np.int64], vocab_size: int, where: str = "") -> None:
    """Raise a `ValueError` that names an id outside the vocabulary, if there is one, and `where` it is."""
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise ValueError(f"token {wrong}{where} is outside the model's vocabulary of {vocab_size:,}")


def checked_window(tokens: Tokens, begin: int, length: int, vocab_size: int) -> npt.NDArray[np.int64]:
    """Return `tokens[begin : begin + length]` as int64; an id outside the vocabulary raises a ValueError."""
    window: npt.NDArray[np.int64] = tokens[begin : begin + length].astype(np.int64)
    if window.max() >= vocab_size:
        check_ids(window, vocab_size, f" at position {begin + int(window.argmax()):,}")
    return window
