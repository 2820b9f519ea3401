"""Files that appear complete or not at all: written in a temporary folder beside them, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpe_llama._files.lock import TAKEN, lock_at_once

_LOCK = ".lock"
_LONGEST = 40  # characters of the file's name in the folder's
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the name of ``path``; on success it replaces ``path``, on an error it is removed.

    A process killed at any moment leaves the old file or the new one. Its temporary folder is removed by the next
    write beside it: a lock tells the folder of a running process from that of a killed one.

    Raises:
        OSError: If the file cannot be written, as on a full disk; it names ``path``.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "greeting.txt"
        >>> with atomic_write(path) as temporary:
        ...     _ = temporary.write_text("hello")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('hello', 1)
    """
    try:
        _remove_abandoned(path)
        folder, lock = _locked_folder(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    temporary = folder / path.name
    try:
        yield temporary
        _finish(temporary, os.fstat(lock).st_mode)
        temporary.replace(path)
    except OSError as error:
        if error.errno is None:  # numpy's, of a file written in part
            reason = f"the file was not written whole ({error}): is the disk full?"
            raise OSError(errno.ENOSPC, reason, os.fspath(path)) from None
        if error.filename is not None and folder not in Path(os.fsdecode(error.filename)).parents:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    finally:
        if os.name == "nt":  # where an open file cannot be removed
            os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        if os.name != "nt":
            os.close(lock)


def _finish(temporary: Path, mode: int) -> None:
    """Flush a file to disk, and give it the mode that new files have."""
    descriptor = os.open(temporary, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if os.name != "nt" and temporary.stat().st_mode != mode:  # safetensors writes files that only the owner reads
        temporary.chmod(mode & 0o777)


def _locked_folder(path: Path) -> tuple[Path, int]:
    """Return a new folder beside ``path``, and the descriptor of its locked lock file."""
    while True:
        folder = path.with_name(f".{path.name[:_LONGEST]}.{secrets.token_hex(8)}.tmp")
        folder.mkdir(mode=0o700)
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except (FileExistsError, FileNotFoundError):  # another writer took the folder for an abandoned one
            continue
        try:
            lock_at_once(lock)
        except OSError as error:  # perhaps a file system without locks
            if error.errno in TAKEN:  # by another writer, which is about to remove the folder
                os.close(lock)
                continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), (folder / _LOCK).stat()):
                return folder, lock
        os.close(lock)


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary folders of killed processes that wrote to the folder of ``path``."""
    with os.scandir(path.parent) as entries:
        found = [Path(entry) for entry in entries if _TEMPORARY.fullmatch(entry.name) and entry.is_dir()]
    for folder in found:
        with contextlib.suppress(OSError):
            _remove_if_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    """Remove a temporary folder, but only with its lock: whoever holds that of the file that is there owns the folder.

    The lock file is created if it is absent: its process was killed, or will find the file and make another folder.
    """
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock_at_once(lock)  # raises if a process holds it, and on a file system without locks
        if not os.path.samestat(os.fstat(lock), (folder / _LOCK).stat()):
            return
        if os.name != "nt":
            shutil.rmtree(folder)
    finally:
        os.close(lock)
    if os.name == "nt":
        shutil.rmtree(folder)
