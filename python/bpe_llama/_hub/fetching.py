"""Return the local path of a name: the path itself, or the files of a repository that a loader needs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from bpe_llama._arguments import check_keywords
from bpe_llama._arguments import path as checked_path
from bpe_llama._files import PathLike
from bpe_llama._hub.gguf_files import choose_gguf
from bpe_llama._hub.names import NO_PATH, HubName, MissingPath, missing_path, parse_name

if TYPE_CHECKING:
    from typing_extensions import Unpack

Needed: TypeAlias = "Callable[[str, Sequence[str]], Generator[Sequence[str], Path, str]]"
"""A generator function that chooses the files to fetch.

Its arguments are the name of the repository, for messages, and the names of the files in it or in its subfolder. It
yields lists of names to fetch, and is sent the folder that then holds them. It returns the name of the file to load,
or ``""`` for the folder.
"""


class HubOptions(TypedDict, total=False):
    """The options of `from_pretrained`, as in transformers. For a local path only ``subfolder`` counts.

    Attributes:
        revision: A branch, a tag or a commit; by default the main branch.
        token: A token; by default, or if ``True``, the one of ``HF_TOKEN`` or ``hf auth login``; ``False`` for none.
        cache_dir: The folder of the cache, in place of ``HF_HUB_CACHE``.
        local_files_only: Whether to send no request; the cache must hold the files.
        subfolder: The folder with the files inside the repository or path.
    """

    revision: str | None
    token: str | bool | None
    cache_dir: PathLike | None
    local_files_only: bool
    subfolder: str


HUB_OPTIONS = frozenset(HubOptions.__annotations__)


def local_path(name: PathLike, needed: Needed, **options: Unpack[HubOptions]) -> Path:
    """Return the path itself if it exists, or else the folder or file of a name in the Hub's cache.

    Args:
        name: A path, or a name as `bpe_llama._hub.names.parse_name` takes it. A path that exists is never a name.
        needed: Chooses the files of a repository.
        **options: See `HubOptions`.

    Raises:
        FileNotFoundError: If the path does not exist and is not a name, the Hub has no such repository or revision,
            `huggingface_hub` is not installed, or the cache lacks files and nothing may be fetched.
        PermissionError: If the repository is gated and the token has no access.
        ConnectionError: If the Hub does not answer and the cache lacks files.
        ValueError: If ``needed`` refuses the files of the repository, or two different revisions are given.
        TypeError: If an option is unknown.
    """
    check_keywords("from_pretrained", options, HUB_OPTIONS)
    path = checked_path("name", name)
    if path.exists():
        subfolder = options.get("subfolder")
        return path if subfolder is None else path / checked_path("subfolder", subfolder)
    parsed = parse_name(name)
    if parsed is None:
        raise FileNotFoundError(f"{name}: no such file or folder{missing_path(name).nearest}")
    if parsed.revision is not None and options.get("revision") not in (None, parsed.revision):
        raise ValueError(f"{name}: names a revision, and revision is {options['revision']!r}; expected one of them")
    return fetched(parsed, needed, missing_path(name), **options)


def fetched(name: HubName, needed: Needed, missing: MissingPath = NO_PATH, **options: Unpack[HubOptions]) -> Path:
    """Fetch the files of a repository that ``needed`` chooses, and return the folder or file to load.

    Args:
        name: The repository.
        needed: Chooses its files.
        missing: What messages say about a path of this name.
        **options: See `HubOptions`.

    Raises:
        OSError: See `local_path`.
    """
    try:
        from bpe_llama._hub.repository import Repository
    except ImportError as error:
        raise FileNotFoundError(
            f"{name.repo}: {missing.absent}looking it up on the Hugging Face Hub needs huggingface-hub, "
            f"pip install 'bpe_llama[hub]' ({error}){missing.nearest}"
        ) from error
    cache, subfolder = options.get("cache_dir"), (options.get("subfolder") or "").strip("/")
    repository = Repository(
        name.repo,
        name.revision or options.get("revision"),
        options.get("token"),
        None if cache is None else Path(cache),
        missing,
    )
    snapshot = repository.open(options.get("local_files_only", False))
    prefix = f"{subfolder}/" if subfolder else ""
    here = [file.removeprefix(prefix) for file in snapshot.files if file.startswith(prefix)]
    where = f"{name.repo}/{subfolder}".rstrip("/")
    choice = needed(where, here) if name.file is None else choose_gguf(where, here, name.file)
    try:
        files = next(choice)
    except FileNotFoundError as error:
        if snapshot.failure is None:
            raise
        raise FileNotFoundError(f"{error}; only the Hugging Face cache was looked in") from snapshot.failure
    while True:
        folder = snapshot.fetch([prefix + file for file in files]) / subfolder
        try:
            files = choice.send(folder)
        except StopIteration as stop:
            return folder / stop.value if stop.value else folder
