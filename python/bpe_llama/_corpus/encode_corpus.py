"""Encode a corpus into token shards, resumably.

A run begins with `sources.json`: the options, and the inputs with their sizes and times. After each shard a line of
`shard.progress` says where in the inputs it ends. A later run checks the first and goes on after the last line of the
second. `index.json` completes the folder.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bpe_llama._arguments import integer, string, wrong
from bpe_llama._arguments import path as checked_path
from bpe_llama._core import DocumentEncoder, shown
from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.encode_documents import Batch, Place, encode_documents
from bpe_llama._corpus.files import find_files, reading_of
from bpe_llama._corpus.hub import HubDataset
from bpe_llama._corpus.shards import (
    INDEX,
    Shard,
    TokenShards,
    begin_shard,
    check_shard,
    dtype_of,
    fingerprint,
    open_shards,
    write_index,
)
from bpe_llama._corpus.token_files import checked_specials
from bpe_llama._files import (
    PathLike,
    absolute,
    append_bytes,
    locked,
    read_bytes,
    read_json_object,
    remove_abandoned,
    write_text,
)
from bpe_llama._progress import ProgressOption, Report, reporting

_SOURCES = "sources.json"
_FORMAT = {"format": "bpe_llama.token_shards.sources", "version": 1}
_BYTES_PER_TOKEN = 4  # of English prose, about


@dataclass(frozen=True)
class CorpusEncoder:
    """What is encoded, how, and where to; :meth:`bpe_llama.Tokenizer.encode_corpus` documents the fields."""

    tokenizer: CoreTokenizer
    files: Sequence[Path]
    dataset: HubDataset | None
    out: Path
    begins: Sequence[int]
    ends: Sequence[int]
    separator: str | None
    field: str
    on_error: str
    shard_tokens: int
    allowed_special: Iterable[str]

    @classmethod
    def of(
        cls,
        tokenizer: CoreTokenizer,
        paths: PathLike | Iterable[PathLike],
        out: PathLike,
        *,
        dataset: str | None = None,
        config: str | None = None,
        split: str = "train",
        allowed_special: Iterable[str] | str,
        **options: Any,
    ) -> CorpusEncoder:
        """Return the corpus of the files that match `paths`, or of a data set."""
        checked_path("out", out)
        options["allowed_special"] = checked_specials(tokenizer, allowed_special)
        for name, value in (("dataset", dataset), ("config", config), ("split", split)):
            if value is not None or name == "split":
                string(name, value)
        if dataset is None:
            if config is not None or split != "train":
                name, value = ("config", config) if config is not None else ("split", split)
                raise ValueError(f"{name} is {shown(value)}, and there is no dataset; give both or neither")
            inside = absolute(out) + os.sep
            files = [path for path in find_files(paths) if not absolute(path).startswith(inside)]
            if not files:
                raise ValueError(f"{os.fspath(out)!r}, the folder of the shards, holds all files of the corpus")
            return cls(tokenizer, files, None, Path(out), **options)
        if isinstance(paths, (str, os.PathLike)) or list(paths):
            raise ValueError(
                f"dataset is {shown(dataset)}, and paths are given; expected paths or a data set, not both"
            )
        return cls(tokenizer, [], HubDataset(dataset, config, split), Path(out), **options)

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: If an option is out of its range.
        """
        if integer("shard_tokens", self.shard_tokens, 1) >= 2**63:
            raise ValueError(wrong("shard_tokens", self.shard_tokens, "less than 2**63"))
        string("field", self.field)
        if self.separator is not None and not string("separator", self.separator):
            raise ValueError("separator is empty; leave it out to keep files whole")

    @cached_property
    def fingerprint(self) -> str:
        """That of the tokenizer."""
        return fingerprint(self.tokenizer)

    def parts(self) -> list[range]:
        """Return consecutive ranges of files, each of about one shard or one file: the work of one worker.

        They depend on the sizes of the files and on `shard_tokens` alone.
        """
        parts, first, size = [], 0, 0
        for number, file in enumerate(self.files):
            size += file.stat().st_size
            if size >= self.shard_tokens * _BYTES_PER_TOKEN or number == len(self.files) - 1:
                parts.append(range(first, number + 1))
                first, size = number + 1, 0
        return parts

    @contextmanager
    def begun(self, *, on_ray: bool = False) -> Iterator[TokenShards | None]:
        """Lock the folder, and yield its shards if they are complete.

        Raises:
            ValueError: If the folder was begun with other inputs or options, or holds other shards.
        """
        sources, path = self._sources(on_ray), self.out / _SOURCES
        with locked(self.out):
            remove_abandoned(self.out)
            has_index = (self.out / INDEX).exists()
            if not path.exists() and (other := next((name for name in os.listdir(self.out) if _is_shards(name)), None)):
                raise ValueError(f"{self.out} holds {other!r} of other token shards; give another folder")
            if has_index or any(log.stat().st_size for log in self.out.glob("*.progress")):
                _check_same(path, read_json_object(path), sources)
            else:  # no shard is finished, so inputs and options may change
                write_text(path, json.dumps(sources) + "\n")
            shards = open_shards(self.out) if has_index else None
            if shards is not None:
                self._remove_logs()  # of a run that was killed after it wrote the index
            yield shards

    def encode(self, num_threads: int | None, bad_rows: BadRows, progress: ProgressOption) -> TokenShards:
        """Return the token shards, encoded on this machine; see `Tokenizer.encode_corpus`."""
        part = range(len(self.files))
        with self.begun() as shards, reporting(progress) as report:
            if shards is None:
                shards = self.finish(self.write_part("shard", part, num_threads, bad_rows, report))
            return shards

    def finish(self, shards: Sequence[Shard]) -> TokenShards:
        """Write the index of all shards, in order, once they are checked, and return them.

        Warns:
            UserWarning: If the corpus holds no text.
        """
        size = self.tokenizer.vocab_size
        for shard in shards:  # also tells whether the folder that workers wrote to is this one
            check_shard(self.out, shard, dtype_of(size))
        tokens, documents, text_bytes = (
            sum(getattr(shard, key) for shard in shards) for key in ("tokens", "documents", "bytes")
        )
        around = tuple(self.begins), tuple(self.ends)
        found = TokenShards(
            self.out, dtype_of(size), size, self.fingerprint, *around, tokens, documents, text_bytes, tuple(shards)
        )
        write_index(found)
        if not text_bytes:
            warnings.warn(f"{self.out}: the corpus holds no text", stacklevel=4)
        self._remove_logs()
        return found

    def _remove_logs(self) -> None:
        for path in self.out.glob("*.progress"):
            path.unlink()

    def write_part(
        self, name: str, part: range, num_threads: int | None, bad_rows: BadRows, report: Report | None
    ) -> list[Shard]:
        """Return the shards of some files, or of the data set; those that an earlier run finished are kept.

        Args:
            name: What the names of its shards begin with.
            part: The numbers of the files.
            num_threads: See `Tokenizer.encode_corpus`.
            bad_rows: Gets the rows without text.
            report: Called with the progress.
        """
        dtype = dtype_of(self.tokenizer.vocab_size)
        log = _Log(self.out / f"{name}.progress")
        done, is_complete = log.read(lambda shard: check_shard(self.out, shard, dtype))
        shards = [shard for shard, _ in done]
        if is_complete:
            return shards
        place = done[-1][1] if done else Place(part.start)
        batches = self._batches(place, part, num_threads, bad_rows, report)
        try:
            documents = _Documents(batches, place)
            while documents.fill():
                file = f"{name}-{len(shards):05}.npy"
                with begin_shard(self.out, file, dtype) as target:
                    while documents.fill() and not (target.tokens >= self.shard_tokens and target.is_between_documents):
                        target.add(*documents.take(self.shard_tokens - target.tokens))
                shards.append(Shard(file, target.tokens, target.documents, target.bytes))
                log.add(shards[-1], documents.place)
        finally:
            batches.close()
        log.complete()
        return shards

    def _batches(
        self, start: Place, part: range, num_threads: int | None, bad_rows: BadRows, report: Report | None
    ) -> Generator[Batch, None, None]:
        """Yield the documents of the files, or of the data set, from `start` on."""
        encoder = partial(
            DocumentEncoder,
            self.tokenizer,
            reading=reading_of(self.separator, self.field, bad_rows),
            begins=list(self.begins),
            ends=list(self.ends),
            num_threads=num_threads,
            allowed_special=self.allowed_special,
        )
        if self.dataset is None:
            yield from encode_documents(encoder, self.files, part, start, self.field, bad_rows, report)
            return
        encode = encoder([])
        for texts, row in self.dataset.texts(self.field, start.documents, bad_rows):
            yield Batch(*encode.encode_texts(texts))
            if report:
                report("encode rows", row, self.dataset.rows)
        if report:
            report("encode rows", self.dataset.rows, self.dataset.rows)

    def _sources(self, on_ray: bool) -> dict[str, Any]:
        files = []
        for path in self.files:
            found = path.stat()
            files.append([absolute(path), found.st_size, found.st_mtime_ns])
        return {
            **_FORMAT,
            "tokenizer": self.fingerprint,
            "begins": list(self.begins),
            "ends": list(self.ends),
            "separator": self.separator,
            "field": self.field,
            "on_error": self.on_error,
            "shard_tokens": self.shard_tokens,
            "allowed_special": self.allowed_special,
            "on_ray": on_ray,
            "dataset": None if self.dataset is None else self.dataset.described(),
            "files": files,
        }


class _Documents:
    """The documents of batches, taken up to a number of ids at a time."""

    def __init__(self, batches: Iterator[Batch], place: Place) -> None:
        self._batches = batches
        self._rest = Batch(*(np.empty(0, np.int64) for _ in Batch._fields))  # type: ignore[arg-type]
        self.place = place

    def fill(self) -> bool:
        """Return whether any document is left, or a part of one."""
        while not (len(self._rest.ids) or len(self._rest.ends)):
            batch = next(self._batches, None)
            if batch is None:
                return False
            self._rest = batch
        return True

    def take(self, tokens: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], int]:
        """Return ids up to the first end of a document after `tokens` of them, the ends, and the bytes of the text."""
        ids, ends, text_bytes, files = self._rest
        count = int(np.searchsorted(ends, tokens)) + 1
        if count > len(ends):  # no document ends there, so all is taken
            count, stop, more = len(ends), len(ids), int(text_bytes[-1])
        else:
            stop, more = int(ends[count - 1]), 0
        self._rest = Batch(ids[stop:], ends[count:] - stop, text_bytes[count:], files[count:])
        if count:
            file = int(files[count - 1])
            before = self.place.documents if file == self.place.file else 0
            self.place = Place(file, before + int((files[:count] == file).sum()))
        return ids[:stop], ends[:count], int(text_bytes[:count].sum()) + more


class _Log:
    """The finished shards of a part and where each ends: a line of JSON each, appended and flushed to the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, check: Callable[[Shard], None]) -> tuple[list[tuple[Shard, Place]], bool]:
        """Return the shards in order and whether they are all. The first that is damaged, and what follows, is cut off.

        A process that is killed may leave a part of a line.
        """
        found: list[tuple[Shard, Place]] = []
        is_complete, length = False, 0
        for line in read_bytes(self._path).splitlines(keepends=True) if self._path.exists() else []:
            try:
                entry = json.loads(line)
                if not line.endswith(b"\n"):
                    break
                if entry == {"complete": True}:
                    is_complete = True
                else:
                    shard = Shard(**entry["shard"])
                    check(shard)
                    found.append((shard, Place(*entry["place"])))
            except (ValueError, TypeError, KeyError, OSError):
                break
            length += len(line)
        if self._path.exists():
            os.truncate(self._path, length)
        return found, is_complete

    def add(self, shard: Shard, place: Place) -> None:
        self._append({"shard": asdict(shard), "place": place})

    def complete(self) -> None:
        self._append({"complete": True})

    def _append(self, entry: dict[str, Any]) -> None:
        with self._path.open("ab", buffering=0) as file:
            append_bytes(file, (json.dumps(entry) + "\n").encode(), flush=True)


def _is_shards(name: str) -> bool:
    return name == INDEX or name.endswith(".progress") or (name.startswith("shard-") and name.endswith(".npy"))


def _check_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise if inputs or options differ from those of `sources.json`; the message names the first difference."""
    advice = f"{path.parent} was begun with other inputs or options; give another --out, or remove the folder"
    if wrong := sorted(before.keys() ^ now.keys()):
        raise ValueError(f"{path}: {wrong[0]!r} is missing or unknown")
    for key, value in now.items():
        if key != "files" and before[key] != value:
            raise ValueError(f"{key} is {value!r:.200}, but was {before[key]!r:.200}: {advice}")
    try:
        old = {file: state for file, *state in before["files"]}
    except (TypeError, ValueError):
        raise ValueError(f"{path}: files is {before['files']!r:.80}, expected names, sizes and times") from None
    new = {file: state for file, *state in now["files"]}
    for file in [*old, *new]:
        if old.get(file) != new.get(file):
            change = (
                "is no longer among the inputs" if file not in new else "is new" if file not in old else "has changed"
            )
            raise ValueError(f"{file} {change}: {advice}")
    if before["files"] != now["files"]:
        raise ValueError(f"the files come in another order: {advice}")
