"""Read the documents of corpus files one by one, as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.files import is_parquet, read_parquet, read_whole
from bpe_llama._corpus.rows import BYTE_ORDER_MARK, check_text, has_lines, read_rows


def read_documents(
    paths: Iterable[Path], *, separator: str | None = None, field: str = "text", bad_rows: BadRows
) -> Iterator[str]:
    """Yield each document of the files: the documents that `Tokenizer.encode_files` encodes.

    A line of `.jsonl` or `.ndjson` and a row of `.parquet` is a document, any other file is one unless ``separator``
    ends it earlier. `.gz` and `.zst` are decompressed. A byte-order mark at the start of a file is not text. Documents
    without text, or that are not UTF-8, go to ``bad_rows``.

    Raises:
        ImportError: If `pyarrow`, which reads Parquet files, is not installed.
        ValueError: If a file is damaged, or a document is and ``bad_rows`` raises; the message names the place.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.txt"
        >>> _ = path.write_text("one|two")
        >>> list(read_documents([path], separator="|", bad_rows=BadRows("raise")))
        ['one', 'two']
    """
    if separator == "":
        raise ValueError("separator is an empty string; expected text, or None for a document a file")
    for path in paths:
        if is_parquet(path):
            yield from read_parquet([path], field, bad_rows)
        elif has_lines(path):
            yield from _rows(path, field, bad_rows)
        else:
            yield from _parts(path, separator, bad_rows)


def _rows(path: Path, field: str, bad_rows: BadRows) -> Iterator[str]:
    for place, row in read_rows(path, bad_rows):
        with bad_rows.caught(place):
            if not isinstance(row, dict) or field not in row:
                raise ValueError(f"no field {field!r}")
            text = row[field]
            if not isinstance(text, str):
                raise ValueError(f"field {field!r} is {text!r:.40}, where a string was expected")
            check_text(text, field)
            yield text


def _parts(path: Path, separator: str | None, bad_rows: BadRows) -> Iterator[str]:
    content = read_whole(path).removeprefix(BYTE_ORDER_MARK)
    parts = [content] if separator is None else content.split(separator.encode())
    if len(parts) > 1 and not parts[-1]:  # nothing follows the last separator
        parts.pop()
    for number, part in enumerate(parts):
        try:
            text = part.decode("utf-8")
        except UnicodeDecodeError as error:
            bad_rows.skip_or_raise(
                f"{path}, document {number}: not UTF-8 ({error.reason} at byte {error.start:,})", error
            )
        else:
            yield text
