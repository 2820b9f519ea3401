"""Find the files of a corpus, and read Parquet files."""

from __future__ import annotations

import errno
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bpe_llama._arguments import iterator
from bpe_llama._arguments import path as checked_path
from bpe_llama._core import FileLines
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._files import PathLike
from bpe_llama._files.read_write import LARGEST_TEXT

_MAX_UNDIVIDED = 16 << 20  # as MAX_UNDIVIDED of rust/bpe/src/corpus/boundaries.rs
_RUNS = re.compile(r"\S+")


def find_files(paths: PathLike | Iterable[PathLike]) -> list[Path]:
    """Return the files that match ``paths``, each once.

    Args:
        paths: A file; a folder, for all files below it; a glob pattern; or several of these. The files of each are
            sorted, and so are the paths of a set. In a pattern, ``**`` matches any number of folders, and all files
            below where it stands last. Links are followed; several links to one folder add its files once. Hidden files
            and folders are left out unless they are named: by ``.*``, say.

    Raises:
        FileNotFoundError: If nothing matches; the message names the path or pattern.
        ValueError: If ``paths`` is empty, or ``**`` is only a part of a name in a pattern.

    Examples:
        >>> [path.name for path in find_files([__file__, __file__])]
        ['files.py']
    """
    one_or_more = "a path, a pattern, or a list of them"
    several = [paths] if isinstance(paths, (str, os.PathLike)) else iterator("paths", paths, one_or_more)
    patterns = sorted(several, key=str) if isinstance(paths, (set, frozenset)) else list(several)
    if not patterns:
        raise ValueError("no paths were given; expected a file, a folder, a pattern, or a list of them")
    found: dict[Path, None] = {}
    for place, given in enumerate(patterns):
        checked_path(f"paths[{place}]", given)
        if str(given).startswith("hf://"):
            raise ValueError(f"{given}: a path was expected; encode-corpus --dataset reads a data set of the Hub")
        pattern = os.path.expanduser(os.fspath(given))
        files = [Path(path) for path in _matching(pattern)]
        if not files:
            if os.path.isdir(pattern):
                why = "the folder holds no files; hidden ones do not count"
            elif _is_magic(pattern):
                why = "no file matches this pattern"
            else:
                why = "no such file or folder"
            raise FileNotFoundError(errno.ENOENT, why, os.fspath(given))
        found.update(dict.fromkeys(sorted(files, key=lambda path: [os.fsencode(part) for part in path.parts])))
    return list(found)


def _is_magic(text: str) -> bool:
    return not set("*?[").isdisjoint(text)


def _matching(pattern: str) -> Iterable[str]:
    """Return the files of a path or pattern, in any order; a file of this name takes precedence over the pattern."""
    if os.path.exists(pattern):
        return _files_below(pattern, ["**"]) if os.path.isdir(pattern) else [pattern]
    first, *parts = Path(pattern).parts or ("",)
    if _is_magic(first):
        first, parts = "", [first, *parts]
    if not parts or not os.path.isdir(first or os.curdir):
        return []
    for part in parts:
        if "**" in part and part != "**":
            raise ValueError(f"{pattern}: ** stands for folders; expected it alone between separators, not in {part!r}")
    # Of several ** in a row, each would find the same files again.
    parts = [part for part, after in zip(parts, [*parts[1:], ""], strict=True) if not part == after == "**"]
    return _files_below(first, parts)


def _files_below(start: str, parts: Sequence[str]) -> Iterator[str]:
    """Yield the paths of all but folders below a folder whose names match ``parts``. Links to folders are followed.

    For ``**`` each folder is read once, however many links lead to it, and by a path without links where there is one.
    """
    waiting: deque[tuple[str, Sequence[str]]] = deque([(start, parts)])  # folders, and what is to be matched in them
    read: set[tuple[int, int, int]] = set()
    while waiting:
        folder, parts = waiting.pop()
        part, rest = parts[0], parts[1:]
        if part == "**":
            status = os.stat(folder or os.curdir)
            state = (status.st_dev, status.st_ino, len(parts))
            if state in read:
                continue
            read.add(state)
            if rest:
                waiting.append((folder, rest))
        for path, is_folder in _entries(folder, part):
            if not is_folder:
                if not rest:
                    yield path
            elif part == "**" or rest:
                below = (path, parts if part == "**" else rest)
                if os.path.islink(path):
                    waiting.appendleft(below)
                else:
                    waiting.append(below)


def _entries(folder: str, part: str) -> Iterator[tuple[str, bool]]:
    """Yield the paths in a folder whose names match a part of a pattern, and whether they are folders."""
    if not _is_magic(part):
        path = os.path.join(folder, part)
        if os.path.lexists(path):
            yield path, os.path.isdir(path)
        return
    with os.scandir(folder or os.curdir) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            hidden = entry.name.startswith(".") and not part.startswith(".")
            if not hidden and fnmatch(entry.name, part):
                path = os.path.join(folder, entry.name)
                yield path, os.path.isdir(path) if entry.is_symlink() else entry.is_dir()


def read_whole(path: Path, largest: int = LARGEST_TEXT) -> bytearray:
    """Return the content of a file, decompressed where its name ends in `.gz` or `.zst`.

    Raises:
        ValueError: If it has more than ``largest`` bytes, a line of more than 256 MiB, or damaged compressed data; the
            message names the file.

    Examples:
        >>> read_whole(Path(__file__), largest=100)
        Traceback (most recent call last):
            ...
        ValueError: ...files.py: more than 100 bytes of text; expected fewer, as it is read as a whole
    """
    content = bytearray()
    for line in FileLines(path):
        content += line
        if len(content) > largest:
            raise ValueError(f"{path}: more than {largest:,} bytes of text; expected fewer, as it is read as a whole")
    return content


def is_parquet(path: Path) -> bool:
    """Return whether a file is a Parquet file, by its suffix."""
    return path.suffix.lower() == ".parquet"


def reading_of(separator: str | None, field: str, bad_rows: BadRows) -> dict[str, object]:
    """Return the options for reading files, as the core takes them."""
    return {"separator": separator, "field": field, "skips_bad_rows": bad_rows.skips}


def read_parquet(paths: Iterable[Path], field: str, bad_rows: BadRows) -> Iterator[str]:
    """Yield the texts of one column of Parquet files, in bounded memory.

    Rows without text go to ``bad_rows``.

    Raises:
        ImportError: If ``pyarrow`` is not installed.
        ValueError: If a file has no such column, is damaged or no Parquet file; if a row holds no text and ``bad_rows``
            does not skip it; if a text has no white space for 16 MiB. The message names the file and, where known, the
            row, counted from 0.
    """
    for path in paths:
        for row, values in enumerate(parquet_rows(path, [field])):
            where = f"{path}, row {row}: column {field!r}"
            try:
                text = values[field].as_py()
            except UnicodeDecodeError as error:
                bad_rows.skip_or_raise(f"{where}: {error}", error)
                continue
            if isinstance(text, str):
                if len(text) > _MAX_UNDIVIDED and any(len(run[0]) > _MAX_UNDIVIDED for run in _RUNS.finditer(text)):
                    raise ValueError(
                        f"{where}: more than {_MAX_UNDIVIDED} bytes of text without white space; expected fewer"
                    )
                yield text
            else:
                bad_rows.skip_or_raise_value(where, text)


def parquet_rows(path: Path, fields: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, in bounded memory, as ``pyarrow`` values by column name.

    Args:
        path: The file.
        fields: The columns; ``None`` for all.

    Raises:
        ImportError: If ``pyarrow`` is not installed.
        ValueError: If a column is missing, or the file is damaged or no Parquet file.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("reading .parquet files needs pyarrow: pip install 'bpe_llama[parquet]'") from error
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for field in fields or ():
                if field not in names:
                    raise ValueError(f"no column {field!r}; it has {names}")
            # A row group may hold gigabytes, and each row a copy of one long text, so rows are read in small batches.
            for batch in file.iter_batches(batch_size=32, columns=fields):
                for values in zip(*batch.columns, strict=True):
                    yield dict(zip(batch.schema.names, values, strict=True))
                    row += 1
    except (ValueError, OSError, MemoryError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        where = f", row {row}" if row else ""
        kind = MemoryError if isinstance(error, MemoryError) else ValueError
        raise kind(f"{path}{where}: {error}") from error


def in_batches(texts: Iterable[str], characters: int = 1 << 22) -> Iterator[list[str]]:
    """Yield the texts in lists of about ``characters`` characters each, which bounds memory.

    Examples:
        >>> list(in_batches(["ab", "cd", "e"], characters=3))
        [['ab'], ['cd'], ['e']]
    """
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text) + 64  # an empty text takes memory, too
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
