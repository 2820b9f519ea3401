"""Fetching a package's files without installing it: PyPI through pip, Debian through apt-get.

`bench.data` lists the packages. Files are written atomically, through a temporary name, and a lock per file prevents
parallel test workers from fetching it twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

TIMEOUT_S = 600


class DataUnavailable(RuntimeError):
    """A file could not be fetched; the message names it and the reason."""


def cache_folder() -> Path:
    """Return the cache folder: ``$BPE_LLAMA_CACHE``, else ``~/.cache/bpe_llama``."""
    chosen = os.environ.get("BPE_LLAMA_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "bpe_llama"


def cached(relative: str, make: Callable[[Path], None]) -> Path:
    """Return the cache's file ``relative``, which ``make(temporary_path)`` writes if it is missing."""
    target = cache_folder() / relative
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.with_name(f".{target.name}.lock")):
        if not target.exists():  # another worker may have written it while this one waited
            temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
            try:
                make(temporary)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
    return target


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: two workers may fetch the same file; the renames leave one complete file
        yield
        return
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def check_sha256(path: Path, expected: str) -> None:
    """Raise `DataUnavailable` unless the file's SHA-256, in hexadecimal, is ``expected``."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise DataUnavailable(f"{path.name}: sha256 is {found}, expected {expected}")


def from_pypi(requirement: str, member: str, target: Path) -> None:
    """Write the file ``member`` of a PyPI wheel to ``target``, downloading the wheel (say ``"litellm==1.99.4"``)."""
    try:
        with zipfile.ZipFile(_wheel(requirement)) as archive, archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataUnavailable(f"{member} of {requirement}: {error}") from error


def unpack_wheel(requirement: str, folder: Path) -> None:
    """Write all files of a PyPI wheel into ``folder``, downloading the wheel."""
    try:
        with zipfile.ZipFile(_wheel(requirement)) as archive:
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        raise DataUnavailable(f"{requirement}: {error}") from error


def _wheel(requirement: str) -> Path:
    wheels = cache_folder() / "wheels" / requirement.replace("==", "-")
    if not any(wheels.glob("*.whl")):
        wheels.mkdir(parents=True, exist_ok=True)
        with _lock(wheels / ".lock"), tempfile.TemporaryDirectory(dir=wheels) as scratch:
            if not any(wheels.glob("*.whl")):
                _pip_download(requirement, scratch)
                for wheel in Path(scratch).glob("*.whl"):
                    os.replace(wheel, wheels / wheel.name)
    (found,) = wheels.glob("*.whl")
    return found


def source_members(requirement: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield ``(name, open file)`` for every regular file of a PyPI package's source archive, downloaded first."""
    with tempfile.TemporaryDirectory() as scratch:
        _pip_download(requirement, scratch, f"--no-binary={requirement.split('==')[0]}")
        (archive_path,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive_path, mode="r|gz") as archive:
            yield from tar_members(archive)


def _pip_download(requirement: str, folder: str, kind: str = "--only-binary=:all:") -> None:
    options = ["download", "--quiet", "--no-deps", kind, "--ignore-requires-python", "--dest", folder]
    candidates = [[sys.executable, "-m", "pip"]]
    if on_path := shutil.which("pip3") or shutil.which("pip"):
        candidates.append([on_path])  # environments of uv have no pip
    complaint = "no pip found"
    for pip in candidates:
        done = _run([*pip, *options, requirement])
        if done.returncode == 0:
            return
        complaint = _last_line(done.stderr)
        if "No module named pip" not in complaint:
            break
    raise DataUnavailable(f"{requirement} from PyPI: {complaint}")


def debian_members(package: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield ``(name, open file)`` for every regular file of a Debian package, in its own order, downloaded first."""
    with tempfile.TemporaryDirectory() as scratch:
        deb = _apt_download(package, Path(scratch))
        tool = [_tool("dpkg-deb"), "--fsys-tarfile", str(deb)]
        with subprocess.Popen(tool, stdout=subprocess.PIPE) as unpack:
            assert unpack.stdout is not None  # for the type checker: stdout=PIPE
            with tarfile.open(fileobj=unpack.stdout, mode="r|") as archive:
                yield from tar_members(archive)
            unpack.stdout.read()  # padding after the end of the archive; without it dpkg-deb fails on a closed pipe
        if unpack.returncode:
            raise DataUnavailable(f"{package}: dpkg-deb exited with {unpack.returncode}")


def tar_members(archive: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield ``(name, open file)`` for every regular file of an open archive."""
    for entry in archive:
        if entry.isfile() and (handle := archive.extractfile(entry)) is not None:
            yield entry.name, handle


def _apt_download(package: str, folder: Path) -> Path:
    # apt checks the archive against Debian's signed index, so no checksum is repeated here.
    apt = _tool("apt-get")
    done = _run([apt, "-qq", "download", package], folder)
    if done.returncode and os.geteuid() == 0:  # package lists missing or older than the mirror: refresh them once
        with _lock(Path(tempfile.gettempdir()) / "bpe_llama-apt.lock"):
            _run([apt, "-qq", "update"])
        done = _run([apt, "-qq", "download", package], folder)
    debs = list(folder.glob("*.deb"))
    if done.returncode or not debs:
        raise DataUnavailable(f"Debian package {package}: {_last_line(done.stderr)}")
    return debs[0]


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise DataUnavailable(f"{name}: not found; this corpus needs Debian packages")
    return path


def _run(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise DataUnavailable(f"{' '.join(command)}: no answer within {TIMEOUT_S} s") from error


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"
