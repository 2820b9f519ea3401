"""Lock a folder for one run: a file lock, which the operating system releases when the process ends or is killed."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from bpe_llama._files.ctrl_c import ctrl_c_waits

_NAME = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
"""The errors of `lock_at_once` where another holds the lock; others say that there are no locks."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder` if it is absent, and lock it for one run.

    The lock is on an open file (`flock`; on Windows `msvcrt.locking`), so a killed process holds none. The file is
    removed at the end.

    Warns:
        UserWarning: If the file system supports no locks; the folder is then not locked.

    Raises:
        ValueError: If another run holds the lock; the message names its process. If the lock is no regular file.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with locked(folder), locked(folder):
        ...     pass
        Traceback (most recent call last):
            ...
        ValueError: ...: another run is going on in this folder (process ...)
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _NAME
    file: IO[str] | None = None
    try:
        with ctrl_c_waits():
            file = _open_locked(path)
        yield
    finally:
        if file is not None:
            release(file, partial(_remove, path))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def release(file: IO[Any], remove: Callable[[], None]) -> None:
    """Remove files, the lock file among them, and release the lock; a Ctrl-C meanwhile acts after that."""
    try:
        with ctrl_c_waits():
            _release(file, remove)
    except KeyboardInterrupt:  # perhaps before the block was entered
        _release(file, remove)
        raise


def _release(file: IO[Any], remove: Callable[[], None]) -> None:
    if file.closed:
        return
    with file:
        if sys.platform == "win32":  # where an open file cannot be removed
            file.close()
        remove()


def _open_locked(path: Path) -> IO[str]:
    while True:
        # A link in a folder of others may lead to any file, and a named pipe cannot be read.
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise ValueError(f"{path}: expected no file, or the lock of a run; remove it")
        file = open(path, "a+", encoding="utf-8", opener=_without_links)  # noqa: SIM115, held open as long as the lock
        try:
            lock_at_once(file.fileno())
        except OSError as error:
            if error.errno not in TAKEN:
                message = f"{path.parent}: the file system supports no locks ({error}); start no second run here"
                warnings.warn(message, stacklevel=4)
                return file
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise ValueError(f"{path.parent}: another run is going on in this folder (process {holder})") from None
        # The last holder may have removed the file after it was opened here and before it was locked.
        with contextlib.suppress(FileNotFoundError):
            if sys.platform == "win32" or os.path.samestat(os.fstat(file.fileno()), path.stat()):
                _sign(file)
                return file
        file.close()


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _sign(file: IO[str]) -> None:
    """Write this process's id into the file for the error message of another run; a full disk is ignored."""
    with contextlib.suppress(OSError):  # unbuffered: closing the file must not fail, too
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"{os.getpid()}\n".encode())


def lock_at_once(descriptor: int) -> None:
    """Lock an open file.

    Raises:
        OSError: If another open file holds the lock, or the file system supports none.
    """
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # a byte beyond the text, so that others can read the text
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
