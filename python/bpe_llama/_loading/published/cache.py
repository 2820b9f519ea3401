"""Find the file of a published vocabulary in the caches of this machine, or fetch it into ours.

Sources: tiktoken/load.py of tiktoken 0.14 names the files of its cache; huggingface_hub/constants.py and its guide
"Understand caching" describe the layout of the Hub's.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Generator, Iterator, Sequence
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

from bpe_llama._files import read_bytes, write_bytes
from bpe_llama._hub.fetching import fetched
from bpe_llama._hub.names import HubName
from bpe_llama._loading.published.vocabularies import Published

TIMEOUT_S = 30.0
_MAX_BYTES = 64 << 20  # the largest known file has 3.6 MB


def cache_folder() -> Path:
    """Return our cache: ``$BPE_LLAMA_CACHE``, else ``~/.cache/bpe_llama``."""
    chosen = os.environ.get("BPE_LLAMA_CACHE")
    return Path(os.path.expanduser(chosen)) if chosen else Path.home() / ".cache" / "bpe_llama"


def cache_folders() -> list[Path]:
    """Return the folders that are searched: ours, tiktoken's unless the environment turns it off, the Hub's."""
    tiktoken = _tiktoken_cache()
    return [cache_folder(), *([] if tiktoken is None else [tiktoken]), _hub_cache()]


def vocabulary_file(name: str, published: Published) -> Path:
    """Return the path of a vocabulary's file, which has the known SHA-256.

    It is looked for in our cache, tiktoken's and the Hugging Face Hub's. If it is in none of them it is downloaded to
    our cache, where its authors let anyone download it.

    Raises:
        FileNotFoundError: If it is in no cache and cannot be downloaded; the message says where to put it.
        ValueError: If what was downloaded has another SHA-256. Nothing is kept of it.
        OSError: If our cache cannot be written.
    """
    looked = []
    for path in _places(published):
        if path.is_file():
            if sha256_of(path) == published.sha256:
                return path
            looked.append(f"{path} (its SHA-256 is not {published.sha256})")
        else:
            looked.append(str(path))
    target = cache_folder() / published.file
    why = published.source
    if published.hub is not None and (published.url is None or find_spec("huggingface_hub") is not None):
        try:
            return _fetch_from_hub(*published.hub, published.sha256)
        except OSError as error:
            why = f"{why}. {error}".removeprefix(". ")
    elif published.url is not None:
        try:
            return _fetch(published.url, published.sha256, target)
        except _Unreachable as error:
            why = f"{published.url} could not be read ({error})"
    where = "".join(f"\n  {place}" for place in looked)
    raise FileNotFoundError(
        f"the vocabulary {name!r} is in no cache. Looked for:{where}\n"
        f"and in the Hugging Face cache {_hub_cache()}.\n{why}. Put the file at {target}"
    )


class _Unreachable(Exception):
    """A URL could not be read."""


def _places(published: Published) -> Iterator[Path]:
    yield cache_folder() / published.file
    tiktoken = _tiktoken_cache()
    if published.url is not None and tiktoken is not None:
        yield tiktoken / hashlib.sha1(published.url.encode()).hexdigest()
    hub = _hub_cache()
    if hub.is_dir():
        # Large files are stored under their SHA-256; any file has its name in a snapshot.
        name = Path(published.file).name
        for pattern in (f"models--*/blobs/{published.sha256}", f"models--*/snapshots/*/{name}"):
            yield from sorted(hub.glob(pattern))
        yield from sorted(hub.glob(f"models--*/snapshots/*/original/{name}"))


def _tiktoken_cache() -> Path | None:
    """Return tiktoken's cache folder, or ``None`` if the environment turns it off."""
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        chosen = os.environ.get(variable)
        if chosen is not None:
            return Path(chosen) if chosen else None
    return Path(tempfile.gettempdir()) / "data-gym-cache"


def _hub_cache() -> Path:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if chosen := os.environ.get(variable):
            return _expanded(chosen)
    if home := os.environ.get("HF_HOME"):
        return _expanded(home) / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(cache) / "huggingface" / "hub"


def _expanded(path: str) -> Path:
    """Return a folder with ``~`` and variables replaced, as `huggingface_hub` does."""
    return Path(os.path.expanduser(os.path.expandvars(path)))


def _fetch(url: str, sha256: str, target: Path) -> Path:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            content = answer.read(_MAX_BYTES + 1)
    except (OSError, HTTPException) as error:  # no network, a status other than 200, a time-out, no HTTP
        raise _Unreachable(str(error)) from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{url}: its content has the SHA-256 {found}, expected {sha256}; it was not kept")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, content)
    return target


def _fetch_from_hub(repo: str, revision: str, file: str, sha256: str) -> Path:
    """Return the file in the Hub's cache, where `huggingface_hub` keeps it."""

    def needed(where: str, files: Sequence[str]) -> Generator[Sequence[str], Path, str]:
        if file not in files:
            raise FileNotFoundError(f"{where}: holds no {file}")
        yield [file]
        return file

    path = fetched(HubName(repo, revision), needed)
    found = sha256_of(path)
    if found != sha256:
        raise ValueError(f"{path}: its content has the SHA-256 {found}, expected {sha256}")
    return path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(read_bytes(path)).hexdigest()
