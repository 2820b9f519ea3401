"""Raise at the first row of a corpus without text, or skip and count such rows."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from bpe_llama._arguments import string
from bpe_llama._core import shown


class BadRows:
    """Rows without text: the first raises an error, or all are skipped and counted.

    A row is a line of ``.jsonl``, a row of ``.parquet``, or a document of another file.

    Attributes:
        skips: Whether rows are skipped.
        count: The number of skipped rows.
        first: The place and the fault of the first one; ``None`` if there is none.

    Examples:
        >>> bad_rows = BadRows("skip")
        >>> bad_rows.skip_or_raise("a.jsonl, line 2: no text")
        >>> bad_rows.count, bad_rows.first
        (1, 'a.jsonl, line 2: no text')
        >>> BadRows("raise").skip_or_raise("a.jsonl, line 2: no text")
        Traceback (most recent call last):
            ...
        ValueError: a.jsonl, line 2: no text
    """

    def __init__(self, on_error: str) -> None:
        """Start with a count of 0.

        Args:
            on_error: ``"raise"`` or ``"skip"``.

        Raises:
            ValueError: If ``on_error`` is another value.
        """
        if string("on_error", on_error) not in ("raise", "skip"):
            raise ValueError(f"on_error is {shown(on_error)}; expected 'raise' or 'skip'")
        self.skips = on_error == "skip"
        self.forget()

    def forget(self) -> None:
        """Reset the count, to read the corpus again."""
        self.count = 0
        self.first: str | None = None

    def add(self, count: int, first: str | None) -> None:
        """Count rows that the core or another process skipped."""
        self.count += count
        self.first = first if self.first is None else self.first

    def skip_or_raise(self, what: str, error: Exception | None = None) -> None:
        """Count one row, or raise an error with the message ``what``.

        Raises:
            ValueError: From ``error``, unless rows are skipped.
        """
        if not self.skips:
            raise ValueError(what) from error
        self.add(1, what)

    def skip_or_raise_value(self, where: str, value: object) -> None:
        """Count the row at ``where`` with a value that is no text, or raise an error that names both."""
        what = "is null" if value is None else f"holds {type(value).__name__} {value!r:.40}"
        self.skip_or_raise(f"{where} {what}, where text was expected")

    @contextlib.contextmanager
    def caught(self, place: str) -> Iterator[None]:
        """Count the row at ``place``, or raise an error that names it, if the block raises a ``ValueError``."""
        try:
            yield
        except ValueError as error:
            self.skip_or_raise(f"{place}: {error}", error)

    def warn(self, stacklevel: int) -> None:
        """Warn of skipped rows, if there are any; a ``stacklevel`` of 2 names the caller's line.

        Warns:
            UserWarning: The number of rows and the fault of the first.
        """
        if self.count:
            rows = "1 row" if self.count == 1 else f"{self.count:,} rows"
            warnings.warn(f"skipped {rows} without text; the first: {self.first}", stacklevel=stacklevel + 1)
