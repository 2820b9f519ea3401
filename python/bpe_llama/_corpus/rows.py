"""Reads the rows of a data file (JSON lines, a JSON array or a Parquet table) with their places in the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bpe_llama._core import FileLines
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.files import is_parquet, parquet_rows, read_whole

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_JSON = re.compile(r"\.(json|jsonl|ndjson)(\.gz|\.zst)?$", re.IGNORECASE)
_TABLES = re.compile(
    r"\.(csv|tsv|tab|psv|jsonlines|ldjson|xlsx?|xlsm|ods|arrow|feather|orc|avro)(\.gz|\.zst)?$", re.IGNORECASE
)
_LINES = re.compile(r"\.(jsonl|ndjson)(\.gz|\.zst)?$", re.IGNORECASE)


def has_rows(path: Path) -> bool:
    """Return whether the suffix of a file is one of JSON or Parquet, so that it holds rows and not plain text."""
    return bool(_JSON.search(path.name)) or is_parquet(path)


def is_other_table(path: Path) -> bool:
    """Return whether the suffix of a file is that of a table that `read_rows` does not support, such as `.csv`."""
    return bool(_TABLES.search(path.name))


def has_lines(path: Path) -> bool:
    """Return whether the suffix of a file is that of JSON lines."""
    return bool(_LINES.search(path.name))


def read_rows(path: Path, bad_rows: BadRows) -> Iterator[tuple[str, Any]]:
    """Yield the place of each row, such as ``a.jsonl, line 3``, and the row; unreadable ones go to ``bad_rows``.

    Lines are counted from 1, the rows of `.json` and `.parquet` files from 0. Blank lines are skipped. A `.json` file
    may hold JSON lines.

    Raises:
        ImportError: If `pyarrow`, which reads Parquet files, is not installed.
        ValueError: If a whole file is damaged, or a row is and ``bad_rows`` raises.
    """
    if is_parquet(path):
        yield from _parquet(path, bad_rows)
    elif has_lines(path):
        yield from _lines(path, bad_rows)
    else:
        yield from _json(path, bad_rows)


def check_text(value: Any, field: str) -> None:
    """Check that a value holds no lone surrogate: JSON allows it, and it would be learned as U+FFFD.

    Raises:
        ValueError: If it holds one; the message names the field.
    """
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"lone surrogate \\u{ord(half):04x} in {field!r}") from None


def _lines(path: Path, bad_rows: BadRows) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(FileLines(path), start=1):
        place = f"{path}, line {number}"
        # A byte-order mark at the start of a file is not text.
        line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            bad_rows.skip_or_raise(f"{place}: not UTF-8 ({error.reason})", error)
        except (ValueError, RecursionError) as error:
            bad_rows.skip_or_raise(f"{place}: not valid JSON ({error})", error)
        else:
            yield place, value


def _json(path: Path, bad_rows: BadRows) -> Iterator[tuple[str, Any]]:
    try:
        value = json.loads(read_whole(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start:,})") from None
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise ValueError(f"{path}: not valid JSON ({error})") from None
        yield from _lines(path, bad_rows)  # JSON lines, which data sets often store as .json
        return
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    rows = value if isinstance(value, list) else [value]
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows))


def _parquet(path: Path, bad_rows: BadRows) -> Iterator[tuple[str, Any]]:
    for number, values in enumerate(parquet_rows(path)):
        place = f"{path}, row {number}"
        try:
            row = {name: value.as_py() for name, value in values.items()}
        except UnicodeDecodeError as error:
            bad_rows.skip_or_raise(f"{place}: not UTF-8 ({error.reason})", error)
        else:
            yield place, _without_nulls(row)


def _without_nulls(value: Any) -> Any:
    """Return a value without null fields: in a table every object has every field."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
