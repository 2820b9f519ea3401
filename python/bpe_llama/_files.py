"""Read and write small files: JSON objects, and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

PathLike: TypeAlias = "str | os.PathLike[str]"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a name to write to in the file's place; once all is well it takes the file's name, else it is removed.

    So a process killed at any moment leaves the old file or the new one. The name is hidden, this
    thread's own, and keeps the suffix. An OSError that names it, or no file as that of a full disk, names this one.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "greeting.txt"
        >>> with written_whole(path) as temporary:
        ...     _ = temporary.write_text("hello")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('hello', 1)
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.filename not in (None, os.fspath(temporary), temporary) or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no JSON object; it names the file and what was found.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
