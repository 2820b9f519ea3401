"""Files that appear complete or not at all: written in a temporary folder beside them, flushed, then renamed.

`atomic_write` replaces one file. `write_together` replaces the files of a folder that belong together; their temporary
folder is also a journal: once it holds `_PLAN`, any process can complete the renames.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from bpe_llama._files.ctrl_c import ctrl_c_waits
from bpe_llama._files.lock import TAKEN, lock_at_once, release

_LOCK = ".lock"
_NUMPY_WROTE = re.compile(r"\d+ requested and \d+ written")  # of a file written in part; the error has no errno
_LONGEST = 40  # characters of the file's name in the folder's
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.(tmp|swap)")
_PLAN = ".plan.json"  # what to rename and remove, in a temporary folder that is complete


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the name of ``path``; on success it replaces ``path``, on an error it is removed.

    A process killed at any moment leaves the old file or the new one. Its temporary folder is removed by the next
    write beside it: a lock tells the folder of a running process from that of a killed one.

    Raises:
        OSError: If the file cannot be written, as on a full disk, or ``path`` is a folder, or a device or a named
            pipe, which a rename would replace by a file; it names ``path``.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "greeting.txt"
        >>> with atomic_write(path) as temporary:
        ...     _ = temporary.write_text("hello")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('hello', 1)
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "a named pipe or a device; expected a regular file", os.fspath(path))
    with _temporary_folder(path, "tmp") as (folder, mode):
        temporary = folder / path.name
        try:
            yield temporary
            _finish(temporary, mode)
            temporary.replace(path)
        except OSError as error:
            if _NUMPY_WROTE.search(str(error)):
                reason = f"{os.strerror(errno.ENOSPC)}, it seems; the file was not written whole ({error})"
                raise OSError(errno.ENOSPC, reason, os.fspath(path)) from None
            if error.errno is None:  # the core's, of a file that it reads
                raise
            if error.filename is not None and folder not in Path(os.fsdecode(error.filename)).parents:
                raise
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None


@contextmanager
def write_together(folder: Path, last: str, replaced: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder; on success its files replace those of ``folder`` together.

    Other files of ``folder`` stay. An error before the first file is renamed leaves the old files. A process killed at
    any moment leaves the old files, or the new ones. If it is killed while it renames them, ``last`` is absent, so that
    no other program takes some old and some new files for a model; `complete_writes`, and the next write into the
    folder, rename the others. Of two processes that write into one folder at once, the later replaces all files of the
    earlier that match ``replaced`` or have names of its own.

    Args:
        folder: Created if it does not exist.
        last: The name of the file without which the others are not read, such as ``config.json``.
        replaced: Patterns of further files that belong to the old ones, which are removed if there is no new one.

    Raises:
        OSError: If a file cannot be written, as on a full disk; it names the file in ``folder``.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "old.txt").write_text("of an old model"), (folder / "notes.txt").write_text("mine")
        >>> with write_together(folder, "config.json", ["old.txt"]) as temporary:
        ...     _ = (temporary / "config.json").write_text("{}"), (temporary / "weights").write_text("w")
        >>> sorted(path.name for path in folder.iterdir())
        ['config.json', 'notes.txt', 'weights']
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _temporary_folder(folder / last, "swap") as (swap, mode):
        try:
            yield swap
            with _one_at_a_time(folder):
                try:
                    _write_plan(swap, last, replaced, mode)
                except BaseException:
                    (swap / _PLAN).unlink(missing_ok=True)  # so that the old files stay
                    raise
                with ctrl_c_waits():
                    _drop_older_plans(swap)
                    _carry_out(swap)
        except OSError as error:
            place = Path(os.fsdecode(error.filename or ""))
            if swap in place.parents:
                raise OSError(error.errno, error.strerror, os.fspath(folder / place.relative_to(swap))) from None
            raise


def complete_writes(folder: Path) -> None:
    """Rename what a process that was killed in `write_together` left; to be called before the folder is read.

    Raises:
        ValueError: If another process is replacing the files, they cannot be renamed, or the plan is damaged; it names
            the folder.
    """
    for swap in _temporary_folders(folder):
        if not os.path.isfile(swap / _PLAN):  # also if the folder is another user's, who alone may look into it
            continue
        last = ""
        try:
            *_, last = _plan_of(swap)[0] or [""]
            _remove_if_abandoned(swap)
        except OSError as error:
            if os.path.isfile(swap / _PLAN) and not (folder / last).exists():  # else all the old files are there
                raise ValueError(
                    f"{folder}: its files are being replaced, or a process was killed while it replaced them "
                    f"({swap.name}: {error.strerror}); try again, or write the folder anew"
                ) from None


def _write_plan(swap: Path, last: str, replaced: Sequence[str], mode: int) -> None:
    """Flush a temporary folder and write its plan, after which its files count and the old ones do not."""
    folder = swap.parent
    names = [path.relative_to(swap).as_posix() for path in swap.rglob("*") if path.is_file() and path.name != _LOCK]
    for name in names:
        if not _is_inside(folder, name):
            raise ValueError(f"{folder / name}: expected a file in the folder, or in a sub-folder that is no link")
        parent = (folder / name).parent
        if (folder / name).is_dir() or (parent.exists() and not parent.is_dir()):
            number = errno.EISDIR if (folder / name).is_dir() else errno.ENOTDIR
            raise OSError(number, os.strerror(number), os.fspath(folder / name))
        _finish(swap / name, mode)
    old = {path.relative_to(folder).as_posix() for pattern in replaced for path in folder.glob(pattern)} - set(names)
    remove = sorted(name for name in old if _is_inside(folder, name) and not (folder / name).is_dir())
    plan = {"rename": sorted(names, key=lambda name: name == last), "remove": remove}
    with atomic_write(swap / _PLAN) as temporary:
        temporary.write_text(json.dumps(plan), encoding="utf-8")
    flush(swap)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process replaces the files of a folder; not on Windows, nor on a file system without locks.

    Files of two processes would be mixed. The system releases the lock of a killed one.
    """
    if sys.platform == "win32":  # which cannot open folders
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _drop_older_plans(swap: Path) -> None:
    """Keep older writes that could not be completed from being completed over this one."""
    for older in _temporary_folders(swap.parent):
        if older != swap:
            with contextlib.suppress(OSError):
                (older / _PLAN).unlink()


def _carry_out(swap: Path) -> None:
    """Rename the files of a complete temporary folder; again after a kill at any moment."""
    folder = swap.parent
    rename, remove = _plan_of(swap)
    left = [name for name in rename if (swap / name).exists()]
    if not left:
        return
    (folder / rename[-1]).unlink(missing_ok=True)
    for name in remove:
        (folder / name).unlink(missing_ok=True)
    for name in left:
        (folder / name).parent.mkdir(exist_ok=True)
        (swap / name).replace(folder / name)
    flush(folder)


def _plan_of(swap: Path) -> tuple[list[str], list[str]]:
    """Return the files to rename, and those to remove, of a complete temporary folder, which may be a stranger's.

    Raises:
        ValueError: If the plan is damaged, or leads out of the folder.
    """
    with open(swap / _PLAN, "rb") as file:
        content = file.read(1 << 20)
    try:
        plan = json.loads(content)
        rename, remove = (list(map(os.fsdecode, plan[key])) for key in ("rename", "remove"))
        inside = all(_is_inside(place, name) for name in rename + remove for place in (swap, swap.parent))
    except (ValueError, KeyError, TypeError, RecursionError):
        inside = False
    if not inside:
        raise ValueError(f"{swap / _PLAN}: damaged; remove {swap}")
    return rename, remove


def _is_inside(folder: Path, name: str) -> bool:
    """Return whether a path is in a folder or a sub-folder of it that is no link."""
    path = Path(name)
    return (
        "\0" not in name
        and len(path.parts) in (1, 2)
        and not path.is_absolute()
        and ".." not in path.parts
        and (len(path.parts) == 1 or not (folder / path.parts[0]).is_symlink())
    )


def _is_pending(swap: Path) -> bool:
    """Return whether a temporary folder is complete, and files of it wait for being renamed."""
    return (swap / _PLAN).is_file() and any(
        path.is_file() and path.name not in (_LOCK, _PLAN) for path in swap.rglob("*")
    )


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk, so that they survive a power failure."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # which cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _finish(temporary: Path, mode: int) -> None:
    """Flush a file to disk, and give it the mode that new files have."""
    flush(temporary)
    if os.name != "nt" and temporary.stat().st_mode != mode:  # safetensors writes files that only the owner reads
        temporary.chmod(mode & 0o777)


@contextmanager
def _temporary_folder(path: Path, kind: str) -> Iterator[tuple[Path, int]]:
    """Yield a new folder beside ``path``, locked, and the mode that new files have; at the end it is removed.

    One that is complete and waits for renames stays: the next reader or writer completes it. Ctrl-C waits while the
    folder is made or removed, so that it leaves none.

    Raises:
        OSError: If it cannot be made; it names ``path``.
    """
    made: tuple[Path, IO[bytes]] | None = None
    try:
        try:
            with ctrl_c_waits():
                remove_abandoned(path.parent)
                made = _locked_folder(path, kind)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
        folder, lock = made
        yield folder, os.fstat(lock.fileno()).st_mode
    finally:
        if made is not None:
            release(made[1], partial(_remove, made[0], path.name))


def _remove(folder: Path, name: str) -> None:
    """Remove a temporary folder that is not pending; ``name`` is the file in it, if it is one for a single file."""
    if _is_pending(folder):
        return
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # `rmtree` opens the folder, which fails where no more files can be opened
        for left in (name, _LOCK):
            (folder / left).unlink(missing_ok=True)
        folder.rmdir()


def _locked_folder(path: Path, kind: str) -> tuple[Path, IO[bytes]]:
    """Return a new folder beside ``path``, and its lock file, open and locked."""
    while True:
        folder = path.with_name(f".{path.name[:_LONGEST]}.{secrets.token_hex(8)}.{kind}")
        folder.mkdir(mode=0o700)
        try:
            lock = (folder / _LOCK).open("xb")
        except (FileExistsError, FileNotFoundError):  # another writer took the folder for an abandoned one
            continue
        except OSError:  # perhaps no more files can be opened
            folder.rmdir()
            raise
        try:
            lock_at_once(lock.fileno())
        except OSError as error:  # perhaps a file system without locks
            if error.errno in TAKEN:  # by another writer, which is about to remove the folder
                lock.close()
                continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), (folder / _LOCK).stat()):
                return folder, lock
        lock.close()


def remove_abandoned(folder: Path) -> None:
    """Remove temporary folders that killed processes left in ``folder``; the files of complete ones are renamed.

    Any write does so; whoever may find nothing left to write calls it.
    """
    for temporary in _temporary_folders(folder):
        with contextlib.suppress(OSError, ValueError):
            _remove_if_abandoned(temporary)


def _temporary_folders(folder: Path) -> list[Path]:
    """Return the temporary folders in a folder, without links."""
    with os.scandir(folder) as entries:
        return [
            Path(entry) for entry in entries if _TEMPORARY.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]


def _remove_if_abandoned(folder: Path) -> None:
    """Remove a temporary folder, but only with its lock: whoever holds that of the file that is there owns the folder.

    The lock file is created if it is absent: its process was killed, or will find the file and make another folder.
    """
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        lock_at_once(lock)  # raises if a process holds it, and on a file system without locks
        if not os.path.samestat(os.fstat(lock), (folder / _LOCK).stat()):
            return
        if (folder / _PLAN).is_file():
            with _one_at_a_time(folder.parent):
                _carry_out(folder)
        if os.name != "nt":
            shutil.rmtree(folder)
    finally:
        os.close(lock)
    if os.name == "nt":
        shutil.rmtree(folder)
