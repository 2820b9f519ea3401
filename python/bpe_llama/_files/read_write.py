"""Read and write small files: text, JSON, and atomic writes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

PathLike: TypeAlias = "str | os.PathLike[str]"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is renamed to ``path``, on an error it is removed.

    A process killed at any moment leaves the old file or the new one. The temporary name is hidden, differs between
    threads, and has the suffix of ``path``. An ``OSError`` that names the temporary file or no file, as on a full disk,
    names ``path`` instead.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "greeting.txt"
        >>> with atomic_write(path) as temporary:
        ...     _ = temporary.write_text("hello")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('hello', 1)
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.filename not in (None, os.fspath(temporary), temporary) or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a file atomically, line ends unchanged."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def read_text(path: Path, newline: str | None = None) -> str:
    """Return the UTF-8 text of a file; `newline` is as in `open`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8; the message names the file and the byte.
    """
    try:
        with path.open(encoding="utf-8", newline=newline) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start:,})") from None


def read_json(path: Path, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return the JSON value in a file.

    Args:
        path: The file.
        object_pairs_hook: As in `json.loads`; the message of its ``ValueError`` gets the file's name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8 or not JSON; the message names the file.
    """
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no JSON object; the message names the file and what it holds.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
