"""Shuffled batches of a memory-mapped token file; a batch is a function of seed and index, so it needs no state.

`bpe_llama.model.training.data.examples` has the batches of examples with labels.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bpe_llama.model.layers.loss import IGNORED

TokenArray = np.ndarray[tuple[int], np.dtype[Any]]
_HASHED = 1 << 16  # tokens per hashed range


@dataclass(frozen=True)
class Batch:
    """The rows of one micro-batch.

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

    @property
    def learned(self) -> int:
        """Return the number of learned tokens, or labels; the first token of a row has no prediction.

        Example:
            >>> Batch(np.array([[5, 6, 7], [6, 7, 8]]), np.array([[5, 6, -100], [-100, 7, 8]])).learned
            3
        """
        labels = self.labels[:, 1:] if self.labels.ndim == 2 else self.labels
        return int((labels != IGNORED).sum())

    def bytes(self, token_bytes: npt.NDArray[np.int64] | None) -> int:
        """Return the bytes of the learned tokens, by the bytes of each id; 0 if these are unknown."""
        if token_bytes is None:
            return 0
        labels = self.labels[:, 1:]
        return int(token_bytes[labels[labels != IGNORED]].sum())


class Batches(Protocol):
    """A data set as the training loop sees it: batches by index, from 0, over any number of epochs."""

    @property
    def fingerprint(self) -> str:
        """Return the size and a hash of the data."""

    def batch(self, index: int) -> Batch:
        """Return batch `index`, which depends on the index alone, so that a resumed run needs no saved state."""

    def tokens_before(self, index: int) -> int:
        """Return the number of tokens in the batches before `index`, without padding."""


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


def open_tokens(path: str | os.PathLike[str]) -> TokenArray:
    """Return the tokens of a `.npy` file, memory-mapped: shape `(n,)`, dtype uint16 or uint32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not such an array, is empty or is truncated.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such token file; `bpe-llama encode` or Tokenizer.encode_files writes one")
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError(f"{path}: not a .npy file of ids, as `bpe-llama encode --out` writes")
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a complete .npy file: {error}") from None
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32):
        found = f"{tokens.dtype} of shape {tokens.shape}" if isinstance(tokens, np.ndarray) else "an archive"
        raise ValueError(f"{path}: {found}, expected one row of uint16 or uint32 tokens")
    if len(tokens) == 0:
        raise ValueError(f"{path}: holds no tokens")
    return tokens


def split_held_out(tokens: TokenArray, fraction: float, window: int) -> tuple[TokenArray, TokenArray]:
    """Return the training tokens and the held-out tokens: the last `fraction`, at least one window, or none if it is 0.

    Example:
        >>> train, held_out = split_held_out(np.arange(1000), fraction=0.1, window=32)
        >>> len(train), len(held_out)
        (900, 100)
    """
    held_out = max(window, int(len(tokens) * fraction)) if fraction > 0 else 0
    if held_out and len(tokens) - held_out < window:
        raise ValueError(f"{len(tokens):,} tokens are too few to train and evaluate on windows of {window:,}")
    return tokens[: len(tokens) - held_out], tokens[len(tokens) - held_out :]


class TokenBatches:
    """Shuffled batches of windows of a token array, over any number of epochs.

    Batch `i` depends only on the seed and `i`, so a resumed run needs no saved state. Each epoch visits every window
    once, with its own permutation and its own offset of the first window.

    Example:
        >>> batches = TokenBatches(np.arange(1000, dtype=np.uint16), window=8, batch_size=4, vocab_size=1000)
        >>> batches.batch(0).ids.shape
        (4, 8)
    """

    def __init__(self, tokens: TokenArray, *, window: int, batch_size: int, vocab_size: int, seed: int = 0) -> None:
        """Construct batches of `batch_size` windows of `window` tokens; ids must be below `vocab_size`.

        Raises:
            ValueError: If the array is shorter than one window.
        """
        if len(tokens) < window:
            raise ValueError(f"{len(tokens):,} tokens, expected at least one window of {window:,}")
        self.tokens, self.window, self.batch_size = tokens, window, batch_size
        self.vocab_size, self.seed = vocab_size, seed
        # One window fewer than fit, so that the offset can vary.
        self.windows_per_epoch = max(1, len(tokens) // window - 1)
        self._order = self._shuffled(0)

    @cached_property
    def fingerprint(self) -> str:
        """Return the number of tokens, and a hash of 16 evenly spaced ranges of them."""
        last = max(0, len(self.tokens) - _HASHED)
        ranges = (self.tokens[last * part // 15 :][:_HASHED] for part in range(16))
        return f"{len(self.tokens):,} tokens (sha256 {short_hash(*ranges)})"

    def batch(self, index: int) -> Batch:
        """Return batch `index` (from 0), of which every token is learned.

        Raises:
            ValueError: If a token is `vocab_size` or larger; the message names its position.
        """
        first = index * self.batch_size
        ids = np.stack([self._window(row) for row in range(first, first + self.batch_size)])
        return Batch(ids, ids)

    def tokens_before(self, index: int) -> int:
        """Return the number of tokens in the batches before `index`."""
        return index * self.batch_size * self.window

    def _window(self, row: int) -> npt.NDArray[np.int64]:
        epoch, place = divmod(row, self.windows_per_epoch)
        if self._order[0] != epoch:
            self._order = self._shuffled(epoch)
        _, shift, order = self._order
        return checked_window(self.tokens, shift + int(order[place]) * self.window, self.window, self.vocab_size)

    def _shuffled(self, epoch: int) -> tuple[int, int, npt.NDArray[np.int64]]:
        """Return the epoch, the offset of its first window, and the order of its windows."""
        random = np.random.default_rng([self.seed, epoch])
        spare = len(self.tokens) - self.windows_per_epoch * self.window
        return epoch, int(random.integers(min(spare, self.window) + 1)), random.permutation(self.windows_per_epoch)


def checked_window(tokens: TokenArray, begin: int, length: int, vocab_size: int) -> npt.NDArray[np.int64]:
    """Return `tokens[begin : begin + length]` as int64; an id outside the vocabulary raises a ValueError."""
    window: npt.NDArray[np.int64] = tokens[begin : begin + length].astype(np.int64)
    if window.max() >= vocab_size:
        at = begin + int(window.argmax())
        raise ValueError(f"token {tokens[at]} at position {at:,} is outside the model's vocabulary of {vocab_size:,}")
    return window
