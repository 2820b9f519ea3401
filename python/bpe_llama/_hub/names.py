"""Tell a local path from a name on the Hub."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass

from bpe_llama._files import PathLike

_PART = r"\w(?:[\w.-]*\w)?"
_REVISION = r"(?:@(?P<{}>refs/pr/\d+|[^/@]+))?"
_NAME = re.compile(
    rf"(?P<repo>{_PART}/{_PART}){_REVISION.format('revision')}(?:/(?P<file>.+\.gguf))?"
    rf"|(?P<bare>{_PART}){_REVISION.format('bare_revision')}"
)
# A name with such an ending is a local file.
_FILES = (".bin", ".gguf", ".json", ".jsonl", ".model", ".npy", ".pth", ".safetensors", ".tiktoken", ".txt")


@dataclass(frozen=True)
class HubName:
    """A name on the Hub.

    Attributes:
        repo: ``ORG/NAME``, or the ``NAME`` of an old repository, such as ``gpt2``.
        revision: A branch, tag or commit, or ``None``.
        file: A ``.gguf`` file of the repository, or ``None``.
    """

    repo: str
    revision: str | None = None
    file: str | None = None


def parse_name(name: PathLike) -> HubName | None:
    """Return the parts of ``ORG/NAME[@REVISION][/FILE.gguf]``, or ``None`` for anything else, which can only be a path.

    The form is that of `huggingface_hub.HfFileSystem`. A `pathlib.Path` is always a path.

    Examples:
        >>> parse_name("org/name@v1.0")
        HubName(repo='org/name', revision='v1.0', file=None)
        >>> parse_name("org/name/model.Q4_0.gguf")
        HubName(repo='org/name', revision=None, file='model.Q4_0.gguf')
        >>> [parse_name(path) for path in ("./org/name", "run/a/b", "tokenizer.json")]
        [None, None, None]
    """
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        return None
    repo = found["repo"] or found["bare"]
    if repo.endswith(_FILES) or "--" in repo or ".." in repo:
        return None
    return HubName(repo, found["revision"] or found["bare_revision"], found["file"])


@dataclass(frozen=True)
class MissingPath:
    """The parts of messages about a path that does not exist.

    Attributes:
        absent: The beginning of a message.
        nearest: Its end: existing paths with a similar name.
    """

    absent: str = ""
    nearest: str = ""


NO_PATH = MissingPath()
"""For a name that was not looked up as a path."""


def missing_path(path: PathLike) -> MissingPath:
    """Return the parts of messages about a path that does not exist."""
    folder, name = os.path.split(os.fspath(path))
    try:
        there = [entry for entry in os.listdir(folder or ".") if not entry.startswith(".")]
    except OSError:
        there = []
    alike = [os.path.join(folder, found) for found in difflib.get_close_matches(name, there, n=3, cutoff=0.6)]
    return MissingPath("no such file or folder here; ", f"; did you mean {' or '.join(alike)}?" if alike else "")
