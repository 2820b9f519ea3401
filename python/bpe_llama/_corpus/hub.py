"""Data sets of the Hugging Face Hub, or of a folder, through the `datasets` library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.files import in_batches
from bpe_llama._hub.names import parse_name

_ROWS = 1000
"""Rows read at a time: `datasets`' own batch size."""


class HubDataset:
    """A split of a data set, as `datasets.load_dataset(name, config, split=split, revision=revision)` returns it."""

    def __init__(self, name: str, config: str | None, split: str) -> None:
        """Load the split; what is not in the library's cache yet is downloaded.

        Args:
            name: ``ORG/NAME`` or ``ORG/NAME@REVISION``, or a folder.
            config: The configuration, or ``None``.
            split: The split.

        Raises:
            ImportError: If `datasets` is not installed.
            OSError: If there is no such data set or revision, or the Hub does not answer.
            ValueError: If there is no such configuration or split, or the data cannot be read.
        """
        try:
            import datasets
        except ImportError as error:
            message = "data sets of the Hugging Face Hub need datasets: pip install 'bpe_llama[hub]'"
            raise ImportError(message) from error
        self.name, self.config, self.split = name, config, split
        parsed = None if Path(name).exists() else parse_name(name)
        repo, revision = (name, None) if parsed is None else (parsed.repo, parsed.revision)
        try:
            self._data: Any = datasets.load_dataset(repo, config, split=split, revision=revision)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise FileNotFoundError(f"data set {name!r}: {error}") from error
        except datasets.exceptions.DatasetsError as error:
            raise ValueError(f"data set {name!r}: {error}") from error

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self._data)

    def described(self) -> dict[str, Any]:
        """Return what tells whether the data are the same."""
        return {
            "name": self.name,
            "config": self.config,
            "split": self.split,
            "rows": self.rows,
            "fingerprint": self._data._fingerprint,
        }

    def texts(self, field: str, skip: int, bad_rows: BadRows) -> Iterator[tuple[list[str], int]]:
        """Yield lists of texts of a column, a few megabytes each, and the number of rows read so far.

        Args:
            field: The column.
            skip: The number of texts to leave out at the beginning.
            bad_rows: Gets the rows without text.

        Raises:
            ValueError: If there is no such column, or a row holds no text and `bad_rows` does not skip it.
        """
        if field not in self._data.column_names:
            raise ValueError(f"data set {self.name!r}: no column {field!r}; it has {self._data.column_names}")
        row = 0

        def texts() -> Iterator[str]:
            nonlocal row
            for batch in self._data.select_columns([field]).iter(batch_size=_ROWS):
                for text in batch[field]:
                    row += 1
                    if isinstance(text, str):
                        yield text
                    else:
                        bad_rows.skip_or_raise_value(f"data set {self.name!r}, row {row - 1}: column {field!r}", text)

        found = texts()
        for _ in range(skip):
            next(found, None)
        for batch in in_batches(found):
            yield batch, row
