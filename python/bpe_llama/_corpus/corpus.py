"""Opens an encoded corpus: a token file, or a folder of token shards as one sequence of documents."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._corpus.shards import TokenShards, fingerprint, open_shards
from bpe_llama._files import PathLike
from bpe_llama._files.arrays import open_array

TokenArray = np.ndarray[tuple[int], np.dtype[Any]]
Ids = npt.NDArray[np.int64]
_CHUNK = 1 << 24
"""Tokens that are read at a time."""


class Tokens(Protocol):
    """A sequence of ids: an array, or the shards of a folder as one."""

    def __len__(self) -> int:
        """Return the number of ids."""

    def __getitem__(self, place: Any, /) -> Any:
        """Return the ids of a slice as an array."""


@dataclass(frozen=True)
class ShardTokens:
    """The ids from `first` to `end` of all shards, as one sequence: slices are read from memory-mapped files."""

    shards: TokenShards
    first: int
    end: int

    def __len__(self) -> int:
        """Return the number of ids."""
        return self.end - self.first

    def __getitem__(self, place: slice) -> TokenArray:
        """Return the ids of a slice without a step, uint16 or uint32 (n,)."""
        begin, stop, _ = place.indices(len(self))
        return self.shards.read(self.first + begin, self.first + max(begin, stop))


@dataclass(frozen=True)
class Corpus:
    """The ids of a corpus and the places of its documents.

    Attributes:
        name: The path, as it was given.
        tokens: The ids, (n,).
        starts: Where each document begins, and n: int64 (m + 1,); None if it is not known.
        tokenizer: The fingerprint of the tokenizer; empty if it is not known.
    """

    name: str
    tokens: Tokens
    starts: Ids | None = None
    tokenizer: str = ""

    def check_tokenizer(self, tokenizer: CoreTokenizer) -> None:
        """Raise a `ValueError` if another tokenizer encoded the corpus, as far as is known; it may have more tokens."""
        if isinstance(self.tokens, ShardTokens) and self.tokenizer != (
            given := fingerprint(tokenizer, self.tokens.shards.vocab_size)
        ):
            raise ValueError(
                f"{self.name}: another tokenizer encoded it: its fingerprint is {self.tokenizer}, the given "
                f"tokenizer's is {given}; expected the same tokenizer, or one with more added tokens; a .tiktoken file "
                "saved from a tokenizer.json counts as another"
            )

    def part(self, first: int, end: int) -> Corpus:
        """Return the tokens from `first` to `end`; documents that begin or end outside are cut."""
        tokens, starts = self.tokens, self.starts
        if isinstance(tokens, ShardTokens):
            tokens = replace(tokens, first=tokens.first + first, end=tokens.first + end)
        else:
            tokens = tokens[first:end]
        if starts is not None:
            inside = starts[np.searchsorted(starts, first, side="right") : np.searchsorted(starts, end)]
            starts = np.concatenate([[first], inside, [end]]) - first
        return replace(self, tokens=tokens, starts=starts)

    def split(self, fraction: float, window: int) -> tuple[Corpus, Corpus | None]:
        """Return the training part and the held-out part: the last `fraction`, at least one window; None if it is 0.

        If documents are known and one begins within the held-out part, that part begins there.

        Raises:
            ValueError: If there is less than a window for either.
        """
        size = len(self.tokens)
        held_out = max(window, int(size * fraction)) if fraction > 0 else 0
        if not held_out:
            return self, None
        cut = size - held_out
        if cut < window:
            raise ValueError(f"{self.name}: {size:,} tokens are too few to train and evaluate on windows of {window:,}")
        if self.starts is not None:
            next_start = int(self.starts[np.searchsorted(self.starts, cut)])
            cut = next_start if size - next_start >= window else cut
        return self.part(0, cut), self.part(cut, size)


def open_corpus(
    path: PathLike,
    vocab_size: int | None = None,
    *,
    ends: Collection[int] = (),
    begins: Collection[int] = (),
) -> Corpus:
    """Return a corpus, checked.

    The documents of a `.npy` file are those of the `.documents.npy` beside it. Without one they are found by the ids
    `ends`, or `begins` if none of `ends` occurs; if neither is given they are unknown.

    Args:
        path: A `.npy` file of ids, or a folder as `bpe-llama encode-corpus` writes.
        vocab_size: That of the model; None does not check the ids.
        ends: The ids that end a document.
        begins: The ids that begin one.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, does not fit the index, or has ids outside the vocabulary.
    """
    path = Path(path)
    if path.is_dir():
        shards = open_shards(path)
        if vocab_size is not None and shards.vocab_size > vocab_size:
            raise ValueError(f"{path}: vocab_size is {shards.vocab_size:,}, but the model's is {vocab_size:,}")
        if not len(shards):
            raise ValueError(f"{path}: holds no tokens")
        offsets = [shards.offsets(n)[:-1] + shards.first_tokens[n] for n in range(len(shards.shards))]
        starts = np.concatenate([*offsets, [len(shards)]])
        return Corpus(str(path), ShardTokens(shards, 0, len(shards)), starts, shards.tokenizer)
    tokens = open_tokens(path)
    beside = path.with_name(path.name.removesuffix(".npy") + ".documents.npy")
    find_documents = bool(ends or begins) and not beside.exists()
    check_ids = vocab_size is not None and vocab_size <= np.iinfo(tokens.dtype).max
    places = []
    for first in range(0, len(tokens), _CHUNK) if check_ids or find_documents else ():
        part = tokens[first : first + _CHUNK]
        if vocab_size is not None and (largest := part.max()) >= vocab_size:
            at = first + int(part.argmax())
            raise ValueError(
                f"{path}: token {largest} at position {at:,} is outside the model's vocabulary of {vocab_size:,}"
            )
        if find_documents:
            places.append([np.flatnonzero(np.isin(part, list(ids))) + first for ids in (ends, begins)])
    starts = _read_starts(beside, len(tokens)) if beside.exists() else None
    if places:
        last, first_ids = (np.concatenate(found) for found in zip(*places, strict=True))
        if len(last) or len(first_ids):
            starts = np.union1d(last + 1 if len(last) else first_ids, [0, len(tokens)])
    return Corpus(str(path), tokens, starts)


def _read_starts(path: Path, tokens: int) -> Ids:
    """Return the places of the documents of a token file.

    Raises:
        ValueError: If the file is damaged or does not fit the token file.
    """
    starts = np.array(open_array(path))
    if starts.ndim != 1 or starts.dtype != np.int64 or len(starts) < 1:
        raise ValueError(f"{path}: expected one row of int64 places of documents")
    if starts[0] != 0 or starts[-1] != tokens or (np.diff(starts) < 0).any():
        raise ValueError(f"{path}: expected places that rise from 0 to {tokens:,}, the tokens of the file beside it")
    return starts


def open_tokens(path: PathLike) -> TokenArray:
    """Return the tokens of a `.npy` file, memory-mapped: shape `(n,)`, dtype uint16 or uint32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not such an array, is empty or is truncated.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such token file; `bpe-llama encode` or Tokenizer.encode_files writes one")
    tokens = open_array(path)
    if tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32):
        raise ValueError(f"{path}: {tokens.dtype} of shape {tokens.shape}, expected one row of uint16 or uint32 tokens")
    if len(tokens) == 0:
        raise ValueError(f"{path}: holds no tokens")
    return tokens
