"""Which files a path, a pattern or a list of them stands for, and the texts of Parquet files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from bpe_llama import _core

PathLike: TypeAlias = "str | os.PathLike[str]"


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
        ['_files.py']
    """
    patterns = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not patterns:
        raise ValueError("no paths were given; expected a file, a folder, a pattern, or a list of them")
    found: dict[Path, None] = {}
    for pattern in patterns:
        found.update(dict.fromkeys(map(Path, _core.expand_paths(os.path.expanduser(os.fspath(pattern))))))
    return list(found)


def is_parquet(path: Path) -> bool:
    """Return whether a file is read by :func:`read_parquet`: by its suffix."""
    return path.suffix.lower() == ".parquet"


def read_parquet(paths: Iterable[Path], field: str = "text") -> Iterator[str]:
    """Yield the texts of one column of Parquet files, in bounded memory. Missing values are left out.

    Raises:
        ImportError: If ``pyarrow`` is not installed.
        ValueError: If a file has no such column, or is no Parquet file.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("reading .parquet files needs pyarrow: pip install pyarrow") from error
    for path in paths:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise ValueError(f"{path}: no column {field!r}; it has {names}")
            for batch in file.iter_batches(batch_size=1024, columns=[field]):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
