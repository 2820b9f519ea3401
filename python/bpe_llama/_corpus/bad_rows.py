"""Raise at, or skip and count, the rows of a corpus that hold no text."""

from __future__ import annotations

import warnings


class BadRows:
    """The rows of a corpus that hold no text: the first is an error, or all are skipped and counted.

    A row is a line of ``.jsonl``, a row of ``.parquet``, or a document of another file.

    Attributes:
        skips: Whether they are skipped.
        count: How many were.
        first: The place of the first one and what is wrong with it; ``None`` if there is none.

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
        """Begin with none.

        Args:
            on_error: ``"raise"`` or ``"skip"``.

        Raises:
            ValueError: If it is anything else.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}; expected 'raise' or 'skip'")
        self.skips = on_error == "skip"
        self.forget()

    def forget(self) -> None:
        """Begin again with none: the corpus is read once more."""
        self.count = 0
        self.first: str | None = None

    def add(self, count: int, first: str | None) -> None:
        """Count rows that were skipped elsewhere."""
        self.count += count
        self.first = first if self.first is None else self.first

    def skip_or_raise(self, what: str, error: Exception | None = None) -> None:
        """Count one row, or raise what is wrong with it.

        Raises:
            ValueError: With these words, from ``error``, unless rows are skipped.
        """
        if not self.skips:
            raise ValueError(what) from error
        self.add(1, what)

    def warn(self, stacklevel: int) -> None:
        """Warn of the rows that were skipped, if there are any; 2 is the caller's own line.

        Warns:
            UserWarning: How many, and what is wrong with the first.
        """
        if self.count:
            rows = "1 row" if self.count == 1 else f"{self.count:,} rows"
            warnings.warn(f"skipped {rows} without text; the first: {self.first}", UserWarning, stacklevel + 1)
