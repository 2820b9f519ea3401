"""Errors of Ray's workers as what they are: of those, Ray hands on nothing but the text of a traceback.

So a worker puts what is to be known into its message, as one line of JSON between marks, and it is read from the text.
That text quotes lines of this file too, wherever Ray finds it, so no line here may look like a marked one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

_KINDS: tuple[type[Exception], ...] = (FileNotFoundError, OSError, TypeError, ValueError)
_MARKED = "<bpe_llama worker: {} :worker bpe_llama>"
_MARKED_IN_TEXT = re.compile(_MARKED.format(r"(\[\d+, .*\])"))


class WorkerError(Exception):
    """What a worker raises in place of an error of its input."""


@contextmanager
def raised_for_driver() -> Iterator[None]:
    """In a worker, mark errors of the input for :func:`raised_by_workers`.

    Raises:
        WorkerError: In place of an ``OSError``, ``TypeError`` or ``ValueError``.
    """
    try:
        yield
    except _KINDS as error:
        kind = next(index for index, kind in enumerate(_KINDS) if isinstance(error, kind))
        arguments: list[object] = [str(error)]
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            arguments = [error.errno, error.strerror, str(error.filename)]
        raise WorkerError(_MARKED.format(json.dumps([kind, arguments]))) from error


@contextmanager
def raised_by_workers() -> Iterator[None]:
    """Where a result is read, raise what a worker marked; other errors pass as they are.

    Raises:
        OSError: If a worker met one; likewise ``FileNotFoundError``, ``TypeError`` and ``ValueError``.
    """
    try:
        yield
    except Exception as error:
        if (marked := _MARKED_IN_TEXT.search(str(error))) is None:
            raise
        kind, arguments = json.loads(marked[1])
        raise _KINDS[kind](*arguments) from error
