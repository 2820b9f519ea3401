"""Raise in Ray's driver the errors of the input that its workers found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

# Ray passes on nothing but the text of a worker's traceback. So a worker writes the kind and the arguments of its error
# into the message, as one line of JSON between marks. The traceback quotes this file, so no line may match the marks.
_KINDS: tuple[type[Exception], ...] = (FileNotFoundError, OSError, TypeError, ValueError)
_MARKED = "<bpe_llama worker: {} :worker bpe_llama>"
_MARKED_IN_TEXT = re.compile(_MARKED.format(r"(\[\d+, .*\])"))


class WorkerError(Exception):
    """Carries an error of the input from a worker to the driver."""


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
    """In the driver, raise the error that a worker marked; other errors propagate.

    Raises:
        OSError: If a worker raised it; likewise ``FileNotFoundError``, ``TypeError`` and ``ValueError``.
    """
    try:
        yield
    except Exception as error:
        if (marked := _MARKED_IN_TEXT.search(str(error))) is None:
            raise
        kind, arguments = json.loads(marked[1])
        raise _KINDS[kind](*arguments) from error
