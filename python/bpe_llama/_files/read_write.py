"""Read and write small files: text and JSON."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

from bpe_llama._files.atomic_write import atomic_write

PathLike: TypeAlias = "str | os.PathLike[str]"


LARGEST_TEXT = 1 << 30
"""The most bytes that are read of a file that is held in memory as a whole."""


def check_regular(path: PathLike) -> None:
    """Raise unless a path is a regular file, which can be read without waiting for another process.

    Raises:
        OSError: If there is no such file, or it is a folder.
        ValueError: If it is a named pipe, a device or a socket; the message names the file.

    Example:
        >>> check_regular(os.devnull)
        Traceback (most recent call last):
            ...
        ValueError: /dev/null: a character device; expected a regular file
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no file")
        raise ValueError(f"{os.fspath(path)}: {kind}; expected a regular file")


_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)


@contextmanager
def errors_naming(path: PathLike, kinds: tuple[type[Exception], ...] = (ValueError,)) -> Iterator[None]:
    """Raise errors of these kinds within the block as `ValueError`, with the path before their message.

    Example:
        >>> with errors_naming("a.json"):
        ...     raise ValueError("r is 0; expected at least 1")
        Traceback (most recent call last):
            ...
        ValueError: a.json: r is 0; expected at least 1
    """
    try:
        yield
    except kinds as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def absolute(path: PathLike) -> str:
    """Return a path that does not depend on the current folder.

    Raises:
        FileNotFoundError: If it depends on a current folder that was removed.
    """
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "the current folder was removed", os.fspath(path)) from None


@contextmanager
def open_regular(path: PathLike) -> Iterator[IO[bytes]]:
    """Open a regular file for reading.

    Raises:
        OSError: If it cannot be opened or read, as on a broken disk; it names the file.
        ValueError: As of `check_regular`.
    """
    check_regular(path)
    with open(path, "rb") as file:
        try:
            yield file
        except OSError as error:
            if error.filename is not None or error.errno is None:
                raise
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def read_bytes(path: PathLike, largest: int = LARGEST_TEXT) -> bytes:
    """Return the content of a regular file of at most `largest` bytes.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is larger, or no regular file; the message names the file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise ValueError(f"{os.fspath(path)}: {size:,} bytes; at most {largest:,} are read")
        return file.read()


def append_bytes(file: io.FileIO, data: bytes, *, flush: bool = False) -> None:
    """Append bytes to an unbuffered file, and flush them to the disk if asked to.

    Raises:
        OSError: If they cannot be written, for example on a full disk; it names the file.
    """
    try:
        while data:
            data = data[file.write(data) :]
        if flush:
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(file.name)) from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes to a file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a file atomically, line ends unchanged."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def read_text(path: Path, newline: str | None = None) -> str:
    """Return the UTF-8 text of a file; `newline` is as in `open`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8, too large, or no regular file; the message names the file.
    """
    content = read_bytes(path)
    try:
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline=newline).read()
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
