"""List and fetch the files of one repository at one commit, through `huggingface_hub`.

Source: the guides "Download files" and "Understand caching" of huggingface_hub; `transformers.utils.hub.cached_files`
for which failures are errors and which fall back to the cache.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi, constants, errors, snapshot_download

from bpe_llama._hub.names import MissingPath

# The base class of errors in the HTTP library of this version of huggingface_hub: requests, httpx or httpx2.
_HttpError: type[Exception] = errors.HfHubHTTPError.__mro__[1]


@dataclass(frozen=True)
class Repository:
    """A repository of models, with the options to access it.

    Attributes:
        repo: ``ORG/NAME``.
        revision: A branch, tag or commit; ``None`` is the main branch.
        token: See `huggingface_hub.HfApi`.
        cache_dir: The cache; ``None`` for that of the environment.
        missing: What messages say about a path of this name.
    """

    repo: str
    revision: str | None
    token: str | bool | None
    cache_dir: Path | None
    missing: MissingPath

    def open(self, local_files_only: bool) -> Snapshot:
        """Return the files of the revision, as the Hub lists them.

        The cache lists them instead with ``local_files_only``, in offline mode, and if the Hub gives no answer or no
        access.

        Raises:
            FileNotFoundError: If there is no such repository or revision, or the Hub does not answer and the cache has
                none.
            PermissionError: If access is denied and the cache has none.
        """
        failure: Exception | None = None
        if not local_files_only:
            try:
                info = HfApi(library_name="bpe_llama", token=self.token).model_info(
                    self.repo, revision=self.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
                )
                return Snapshot(self, str(info.sha), [file.rfilename for file in info.siblings or ()], None)
            except (errors.RevisionNotFoundError, errors.HFValidationError) as error:
                raise self.explained(error) from error
            except (OSError, _HttpError) as error:
                if isinstance(error, errors.RepositoryNotFoundError) and not isinstance(error, errors.GatedRepoError):
                    raise self.explained(error) from error
                failure = error
        failure = failure or errors.OfflineModeIsEnabled("local_files_only is true")
        folder = self.cached_folder()
        if folder is None:
            raise self.explained(failure) from None  # the message says why; a traceback of sockets would hide it
        return Snapshot(self, folder.name, self._cached_files(folder), failure)

    def cached_folder(self) -> Path | None:
        """Return the folder of the revision in the cache, which may lack files, or ``None``."""
        try:
            return Path(
                snapshot_download(
                    self.repo,
                    revision=self.revision,
                    cache_dir=self.cache_dir,
                    local_files_only=True,
                    allow_patterns=[],
                )
            )
        except errors.LocalEntryNotFoundError:
            return None

    def _cached_files(self, folder: Path) -> list[str]:
        """Return the files of a commit: all, if the cache has the list of them, or else the cached files."""
        listing = getattr(huggingface_hub, "get_cached_repo_tree", None)  # from huggingface_hub 2 on
        if listing is not None:
            try:
                return [file.path for file in listing(self.repo, revision=folder.name, cache_dir=self.cache_dir)]
            except errors.CachedRepoTreeNotFoundError:
                pass
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    def explained(self, error: Exception, lacking: Sequence[str] = ()) -> OSError:
        """Return what to raise for an error of `huggingface_hub`; ``lacking`` are files that the cache lacks."""
        at = "" if self.revision is None else f" at revision {self.revision!r}"
        cache = Path(self.cache_dir or constants.HF_HUB_CACHE).expanduser()
        absent = f"{self.missing.absent}the Hugging Face cache {cache} lacks it"
        if lacking:
            absent = f"the Hugging Face cache {cache} lacks {', '.join(lacking)}"
        if isinstance(error, errors.RevisionNotFoundError):
            return FileNotFoundError(f"{self.repo}: has no revision {self.revision!r} on {constants.ENDPOINT}")
        if isinstance(error, errors.OfflineModeIsEnabled):
            why = "local_files_only is true" if "local_files_only" in str(error) else "HF_HUB_OFFLINE is set"
            return FileNotFoundError(f"{self.repo}{at}: {absent}; nothing is fetched, as {why}{self.missing.nearest}")
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
        if isinstance(error, errors.GatedRepoError) or status == 403:
            return PermissionError(
                f"{self.repo}: {constants.ENDPOINT} denies access (HTTP status {status}); ask for it at "
                f"{constants.ENDPOINT}/{self.repo}, then give a token of that account: token=, HF_TOKEN or "
                "`hf auth login`"
            )
        if isinstance(error, errors.HFValidationError | errors.RepositoryNotFoundError) or status in (401, 404):
            return FileNotFoundError(
                f"{self.repo}: {self.missing.absent}{constants.ENDPOINT} has no such repository, or a private one, "
                f"which needs token=, HF_TOKEN or `hf auth login` (HTTP status {status}){self.missing.nearest}"
            )
        reason = " ".join(str(error).split())
        return (ConnectionError if lacking else FileNotFoundError)(
            f"{self.repo}{at}: {absent}, and {constants.ENDPOINT} could not be read "
            f"({type(error).__name__}: {reason:.200}){self.missing.nearest}"
        )


@dataclass(frozen=True)
class Snapshot:
    """The files of a repository at one commit.

    Attributes:
        repository: The repository.
        commit: The SHA of the commit.
        files: The known files: all files of the commit, or only the cached ones if the Hub did not list them.
        failure: Why files cannot be fetched, so that the cache must hold them. ``None`` if they can be.
    """

    repository: Repository
    commit: str
    files: Sequence[str]
    failure: Exception | None

    def fetch(self, files: Sequence[str]) -> Path:
        """Fetch the files that the cache lacks, and return the folder of the snapshot.

        If the cache lacks no file, no request is sent. A file is written under a temporary name and then renamed, so
        every file in the folder is complete.

        Raises:
            FileNotFoundError: If the cache lacks files and they cannot be fetched.
            PermissionError: If access is denied.
            ConnectionError: If a file could not be fetched.
            OSError: If the branch points to another commit since `Repository.open`.
        """
        repository = self.repository
        folder = repository.cached_folder()
        at_commit = folder is not None and folder.name == self.commit
        lacking = [name for name in files if not (at_commit and folder is not None and (folder / name).is_file())]
        if at_commit and folder is not None and not lacking:
            return folder
        if self.failure is not None:
            raise repository.explained(self.failure, lacking) from self.failure
        try:
            folder = Path(
                snapshot_download(
                    repository.repo,
                    revision=repository.revision,
                    cache_dir=repository.cache_dir,
                    token=repository.token,
                    allow_patterns=[glob.escape(name) for name in files],
                    library_name="bpe_llama",
                )
            )
        except (OSError, _HttpError, errors.HFValidationError) as error:
            raise repository.explained(error, lacking) from error
        if folder.name != self.commit or not all((folder / name).is_file() for name in files):
            raise OSError(f"{repository.repo}: changed on the Hub while it was read; try again")
        return folder
