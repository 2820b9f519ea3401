"""The files of a corpus: which ones a path or pattern names, and the texts of Parquet files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bpe_llama._core import expand_paths
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._files import PathLike


def find_files(paths: PathLike | Iterable[PathLike]) -> list[Path]:
    """Return the files that ``paths`` stands for, each once.

    Args:
        paths: A file; a folder, for all files below it that are not hidden; a glob pattern, in which ``**`` stands for
            any number of folders; or several of these. What one of them stands for is sorted.

    Raises:
        FileNotFoundError: If nothing matches; it names the path or pattern.
        ValueError: If ``paths`` is empty or a pattern is broken.

    Examples:
        >>> [path.name for path in find_files([__file__, __file__])]
        ['files.py']
    """
    patterns = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not patterns:
        raise ValueError("no paths were given; expected a file, a folder, a pattern, or a list of them")
    found: dict[Path, None] = {}
    for pattern in patterns:
        found.update(dict.fromkeys(map(Path, expand_paths(os.path.expanduser(os.fspath(pattern))))))
    return list(found)


def is_parquet(path: Path) -> bool:
    """Return whether a file is read by :func:`read_parquet`: by its suffix."""
    return path.suffix.lower() == ".parquet"


def reading_of(separator: str | None, field: str, bad_rows: BadRows) -> dict[str, object]:
    """Return how files are read, as the core takes it."""
    return {"separator": separator, "field": field, "skips_bad_rows": bad_rows.skips}


def read_parquet(paths: Iterable[Path], field: str, bad_rows: BadRows) -> Iterator[str]:
    """Yield the texts of one column of Parquet files, in bounded memory.

    Rows that hold something else, or nothing, go to ``bad_rows``.

    Raises:
        ImportError: If ``pyarrow`` is not installed.
        ValueError: If a file has no such column, or is no Parquet file or a damaged one; if ``bad_rows`` skips none and
            a row is missing or no text. It names the file, and the row where it can, the first being row 0.
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
                yield text
            elif text is None:
                bad_rows.skip_or_raise(f"{where} is null, where text was expected")
            else:
                bad_rows.skip_or_raise(f"{where} holds {type(text).__name__} {text!r:.40}, not text")


def parquet_rows(path: Path, fields: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, in bounded memory: the values of these columns, or all, as ``pyarrow``'s.

    Raises:
        ImportError: If ``pyarrow`` is not installed.
        ValueError: If a column is missing, or it is no Parquet file or a damaged one.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("reading .parquet files needs pyarrow: pip install 'bpe-llama[parquet]'") from error
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for field in fields or ():
                if field not in names:
                    raise ValueError(f"no column {field!r}; it has {names}")
            # A copy in memory of a batch, not of the file's row groups, which may hold gigabytes.
            for batch in file.iter_batches(batch_size=256, columns=fields):
                for values in zip(*batch.columns, strict=True):
                    yield dict(zip(batch.schema.names, values, strict=True))
                    row += 1
    except (ValueError, OSError) as error:  # pyarrow's own errors are one or the other
        if isinstance(error, OSError) and error.errno is not None:
            raise
        where = f", row {row}" if row else ""
        raise ValueError(f"{path}{where}: {error}") from error


def in_batches(texts: Iterable[str], characters: int = 1 << 22) -> Iterator[list[str]]:
    """Yield the texts in lists of about so many characters each, that memory depends on no one's number or length.

    Examples:
        >>> list(in_batches(["ab", "cd", "e"], characters=3))
        [['ab'], ['cd'], ['e']]
    """
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text) + 64  # so that empty texts count too
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
