"""Token shards: a folder of `.npy` files of ids, the places of their documents, and an index.

| file | content |
|---|---|
| `index.json` | vocabulary, dtype, counts, and the shards in order; written last |
| `shard-00000.npy` | one row of ids, uint16 or uint32: a token file of its own |
| `shard-00000.documents.npy` | int64, one more than documents: where each begins, and the number of ids |

No document crosses shards.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._core import shown
from bpe_llama._files import PathLike, read_json_object, write_text
from bpe_llama._files.arrays import ArrayFile, begin_array, open_array

__all__ = ["Shard", "TokenShards", "fingerprint", "open_shards"]

INDEX = "index.json"
_FORMAT = {"format": "bpe_llama.token_shards", "version": 1}
_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_OFFSETS = np.dtype("<i8")
_OPEN_FILES = 64
"""The number of files that are mapped at a time: a process may open some hundreds."""

Ids: TypeAlias = "npt.NDArray[np.uint16 | np.uint32]"


@dataclass(frozen=True)
class Shard:
    """One shard of an index.

    Attributes:
        file: The name of its file of ids.
        tokens: The number of ids.
        documents: The number of documents.
        bytes: The number of UTF-8 bytes of their text.
    """

    file: str
    tokens: int
    documents: int
    bytes: int


@dataclass(frozen=True)
class TokenShards:
    """An encoded corpus on disk, as :meth:`bpe_llama.Tokenizer.encode_corpus` writes it. Files are memory-mapped.

    Attributes:
        folder: The folder.
        dtype: ``"uint16"`` or ``"uint32"``.
        vocab_size: That of the tokenizer; ids are below it.
        tokenizer: The :func:`fingerprint` of the tokenizer.
        begins: The ids before each document.
        ends: The ids after each document.
        tokens: The number of ids, also ``len(shards)``.
        documents: The number of documents.
        bytes: The number of UTF-8 bytes of their text.
        shards: The shards in order.
    """

    folder: Path
    dtype: str
    vocab_size: int
    tokenizer: str
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    tokens: int
    documents: int
    bytes: int
    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        """Return the number of ids."""
        return self.tokens

    @cached_property
    def first_tokens(self) -> npt.NDArray[np.int64]:
        """Where each shard begins among all ids, and their number: int64 (S + 1,)."""
        return np.cumsum([0, *(shard.tokens for shard in self.shards)], dtype=np.int64)

    @cached_property
    def first_documents(self) -> npt.NDArray[np.int64]:
        """The number of the first document of each shard, and their number: int64 (S + 1,)."""
        return np.cumsum([0, *(shard.documents for shard in self.shards)], dtype=np.int64)

    def ids(self, shard: int) -> Ids:
        """Return the ids of a shard, (n,), memory-mapped."""
        return self._mapped(self.shards[shard].file, _DTYPES[self.dtype], self.shards[shard].tokens)

    def offsets(self, shard: int) -> npt.NDArray[np.int64]:
        """Return where each document of a shard begins in its ids, and their number, int64 (m + 1,), memory-mapped."""
        return self._mapped(_documents_of(self.shards[shard].file), _OFFSETS, self.shards[shard].documents + 1)

    def read(self, start: int, stop: int) -> Ids:
        """Return the ids from `start` to `stop` of all shards as one row: a copy, or a view inside one shard.

        Raises:
            IndexError: Unless ``0 <= start <= stop <= tokens``.
        """
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start:,} to {stop:,} of {self.tokens:,} in {self.folder}")
        parts: list[Ids] = []
        shard = int(np.searchsorted(self.first_tokens, start, side="right")) - 1
        while start < stop:
            first, end = map(int, self.first_tokens[shard : shard + 2])
            parts.append(self.ids(shard)[start - first : stop - first])
            start, shard = min(stop, end), shard + 1
        if not parts:
            return np.empty(0, _DTYPES[self.dtype])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def document(self, number: int) -> Ids:
        """Return the ids of one document, counted from 0 over all shards.

        Raises:
            IndexError: Unless ``0 <= number < documents``.
        """
        if not 0 <= number < self.documents:
            raise IndexError(f"document {number:,} of {self.documents:,} in {self.folder}")
        shard = int(np.searchsorted(self.first_documents, number, side="right")) - 1
        row = number - int(self.first_documents[shard])
        start, stop = map(int, self.offsets(shard)[row : row + 2])
        return self.ids(shard)[start:stop]

    @cached_property
    def _maps(self) -> OrderedDict[str, npt.NDArray[Any]]:
        return OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the mapped files."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _mapped(self, name: str, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        if (found := self._maps.pop(name, None)) is None:
            found = _open_part(self.folder / name, dtype, count)
        self._maps[name] = found
        if len(self._maps) > _OPEN_FILES:
            self._maps.popitem(last=False)
        return found


def open_shards(folder: PathLike) -> TokenShards:
    """Return the token shards in a folder, checked; ids are not read.

    Raises:
        FileNotFoundError: If the folder has no index, or a shard of it is missing.
        ValueError: If the index has an unknown version or key, its counts do not add up, or a file does not fit it: cut
            short, of another dtype, or with offsets that do not increase. The message names file and field.

    Cost:
        Reads the documents' offsets, 8 bytes each.

    Examples:
        >>> import tempfile
        >>> from bpe_llama import Tokenizer
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.txt").write_text("abab")
        >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
        >>> _ = tok.encode_corpus(folder / "a.txt", folder / "shards", progress=False)
        >>> shards = open_shards(folder / "shards")
        >>> len(shards), shards.document(0)
        (2, memmap([256, 256], dtype=uint16))
    """
    folder = Path(folder)
    shards = _read_index(folder)
    for shard in shards.shards:
        check_shard(folder, shard, shards.dtype)
    return shards


def check_shard(folder: Path, shard: Shard, dtype: str) -> None:
    """Check the files of one shard against its entry in the index; see :func:`open_shards` for the errors."""
    _open_part(folder / shard.file, _DTYPES[dtype], shard.tokens)
    path = folder / _documents_of(shard.file)
    offsets = _open_part(path, _OFFSETS, shard.documents + 1)
    if offsets[0] != 0 or offsets[-1] != shard.tokens:
        raise ValueError(f"{path}: offsets {offsets[0]} to {offsets[-1]}, expected 0 to {shard.tokens}")
    if (falls := np.flatnonzero(offsets[1:] < offsets[:-1])).size:  # a difference may overflow
        at = int(falls[0])
        raise ValueError(
            f"{path}: offsets must increase, but document {at} goes from {offsets[at]} to {offsets[at + 1]}"
        )


def fingerprint(tokenizer: CoreTokenizer, vocab_size: int | None = None) -> str:
    """Return 16 hexadecimal digits of a hash of all that decides the ids of a text.

    Saving and loading keep it, but for a `.tiktoken` file, which states that whole pre-tokens need no merge. With
    `vocab_size` it is that of the tokenizer without tokens that were added after these, as for a chat template.
    """

    def known(tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [token for token in tokens if vocab_size is None or token["id"] < vocab_size]

    model = tokenizer.sentencepiece_model()
    if model is None:
        described = json.loads(tokenizer.to_own_json())
        own = described.pop("own", None) or {}  # what no tokenizer.json can state
        described["own"] = {key: value for key, value in own.items() if value}
        described["added_tokens"] = known(described["added_tokens"])
        vocabulary = described["model"]["vocab"]  # has added tokens, too, where ids are missing
        described["model"]["vocab"] = {
            name: token_id for name, token_id in vocabulary.items() if vocab_size is None or token_id < vocab_size
        }
        model = json.dumps(described, sort_keys=True).encode()
    added = json.dumps(known(json.loads(tokenizer.added_tokens_json())), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(model + added.encode()).hexdigest()[:16]


def dtype_of(vocab_size: int) -> str:
    """Return the name of the smallest dtype that holds the ids."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def _documents_of(file: str) -> str:
    return file.removesuffix(".npy") + ".documents.npy"


def _open_part(path: Path, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """Return a file of a shard, memory-mapped; raise unless it is one row of this dtype and length, and no more."""
    try:
        array = open_array(path)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "a file of the token shards is missing", str(path)) from None
    if (array.shape, array.dtype) != ((count,), dtype):
        is_found = f"{array.dtype!s:.200} of shape {shown(array.shape)}"
        raise ValueError(f"{path}: {is_found}, where {INDEX} says {dtype} of shape ({count},)")
    if (size := path.stat().st_size) != (expected := array.offset + array.nbytes):
        raise ValueError(f"{path}: {size:,} bytes, expected {expected:,}: more follow the array")
    return array


# -- the index ---------------------------------------------------------------------------------------------------------


def write_index(shards: TokenShards) -> None:
    """Write `index.json`, which completes the folder."""
    index = _FORMAT | {key: value for key, value in asdict(shards).items() if key != "folder"}
    write_text(shards.folder / INDEX, json.dumps(index, indent=1) + "\n")


def _read_index(folder: Path) -> TokenShards:
    path = folder / INDEX
    if folder.is_dir() and not path.exists():
        raise FileNotFoundError(
            errno.ENOENT,
            "no index of token shards; `bpe-llama encode-corpus TEXTS --out FOLDER` makes them and writes it last",
            str(path),
        )
    index = read_json_object(path)
    for key, expected in _FORMAT.items():
        if index.get(key) != expected:
            raise ValueError(f"{path}: {key} is {shown(index.get(key))}, expected {expected!r}")
    names = [field.name for field in fields(TokenShards)][1:]
    _check_keys(index, [*_FORMAT, *names], str(path))
    if not isinstance(index["shards"], list):
        raise ValueError(f"{path}: shards is {shown(index['shards'])}, expected a list")
    shards = []
    for number, shard in enumerate(index["shards"]):
        where = f"{path}, shard {number}"
        if not isinstance(shard, dict):
            raise ValueError(f"{where} is {shown(shard)}, expected an object")
        _check_keys(shard, [field.name for field in fields(Shard)], where)
        name = shard["file"]
        is_name = isinstance(name, str) and name.endswith(".npy") and not set(name) & set("/\\:\0")
        if not is_name:
            raise ValueError(f"{where}: file is {shown(name)}, expected the name of a .npy file in this folder")
        for key in ("tokens", "documents", "bytes"):
            _check_count(shard[key], key, where)
        shards.append(Shard(**shard))
    if len({shard.file for shard in shards}) < len(shards):
        raise ValueError(f"{path}: a file is listed twice")
    for key in ("vocab_size", "tokens", "documents", "bytes"):
        _check_count(index[key], key, str(path))
        if key != "vocab_size" and index[key] != (total := sum(getattr(shard, key) for shard in shards)):
            raise ValueError(f"{path}: {key} is {index[key]}, but those of its shards are {total}")
    if index["dtype"] != (dtype := dtype_of(index["vocab_size"])):
        raise ValueError(
            f"{path}: dtype is {shown(index['dtype'])}, expected {dtype!r} for {index['vocab_size']:,} ids"
        )
    if not isinstance(index["tokenizer"], str):
        raise ValueError(f"{path}: tokenizer is {shown(index['tokenizer'])}, expected a fingerprint")
    for key in ("begins", "ends"):
        ids = index[key]
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < index["vocab_size"] for i in ids):
            raise ValueError(f"{path}: {key} is {shown(ids)}, expected ids below {index['vocab_size']}")
        index[key] = tuple(ids)
    return TokenShards(folder, **{name: index[name] for name in names if name != "shards"}, shards=tuple(shards))


def _check_keys(value: dict[str, Any], expected: list[str], where: str) -> None:
    if unknown := sorted(value.keys() - set(expected)):
        raise ValueError(f"{where}: unknown key {shown(unknown[0])}; this version knows {expected}")
    for key in expected:
        if key not in value:
            raise ValueError(f"{where}: no {shown(key)}")


def _check_count(value: object, key: str, where: str) -> None:
    if type(value) is not int or value < 0:
        raise ValueError(f"{where}: {key} is {shown(value)}, expected a whole number")


# -- writing -----------------------------------------------------------------------------------------------------------


class ShardFile:
    """A shard that grows; `begin_shard` makes one.

    Attributes:
        bytes: The number of UTF-8 bytes of its text so far.
        is_between_documents: Whether the last document has ended.
    """

    def __init__(self, ids: ArrayFile, offsets: ArrayFile) -> None:
        """Write ids to one file, and where documents begin to another."""
        self._ids, self._offsets, self.bytes = ids, offsets, 0
        self.is_between_documents = True
        offsets.append(np.zeros(1, _OFFSETS))

    @property
    def tokens(self) -> int:
        """The number of ids so far."""
        return self._ids.size

    @property
    def documents(self) -> int:
        """The number of documents that have ended."""
        return self._offsets.size - 1

    def add(self, ids: npt.NDArray[np.uint32], ends: npt.NDArray[np.int64], text_bytes: int) -> None:
        """Append ids, in which documents end at `ends`."""
        self._offsets.append(ends + self.tokens)
        self._ids.append(ids)
        if len(ids) or len(ends):
            self.is_between_documents = len(ends) > 0 and int(ends[-1]) == len(ids)
        self.bytes += text_bytes


@contextmanager
def begin_shard(folder: Path, name: str, dtype: str) -> Iterator[ShardFile]:
    """Yield a shard to write; both of its files are complete under their names at the end, or not there."""
    with (
        begin_array(folder / name, _DTYPES[dtype]) as ids,
        begin_array(folder / _documents_of(name), _OFFSETS) as offsets,
    ):
        yield ShardFile(ids, offsets)
