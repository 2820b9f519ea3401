"""Choose a ``.gguf`` file of a repository; of a split file, all parts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Generator, Sequence
from pathlib import Path


def choose_gguf(where: str, files: Sequence[str], name: str) -> Generator[Sequence[str], Path, str]:
    """Choose the file of this name, with all its parts if it is split; see `bpe_llama._hub.fetching.Needed`.

    Raises:
        FileNotFoundError: If there is no file of this name.

    Examples:
        >>> next(choose_gguf("org/name", ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], "a-00001-of-00002.gguf"))
        ['a-00001-of-00002.gguf', 'a-00002-of-00002.gguf']
    """
    if name not in files:
        alike = difflib.get_close_matches(name, [file for file in files if file.endswith(".gguf")], n=3, cutoff=0.3)
        shown = f"; did you mean {' or '.join(alike)}?" if alike else ""
        raise FileNotFoundError(f"{where}: holds no {name}{shown}")
    yield [file for file in files if _whole(file) == _whole(name)]
    return name


def only_gguf(where: str, files: Sequence[str]) -> str | None:
    """Return the name of the only ``.gguf`` file, or ``None`` if there is none. Of a split file it is the first part.

    Raises:
        ValueError: If there are several files.

    Examples:
        >>> only_gguf("org/name", ["README.md", "a-00002-of-00002.gguf", "a-00001-of-00002.gguf"])
        'a-00001-of-00002.gguf'
    """
    found = sorted(file for file in files if file.endswith(".gguf") and "/" not in file)
    if len({_whole(file) for file in found}) > 1:
        raise ValueError(f"{where}: holds several .gguf files, {', '.join(found)}; name one, as in {where}/{found[0]}")
    return found[0] if found else None


def _whole(file: str) -> str:
    """Return the name that all parts of a split file have in common."""
    return re.sub(r"-\d{5}-of-(\d{5})\.gguf$", r"-of-\1.gguf", file)
