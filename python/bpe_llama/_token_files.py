"""Files of text to one file of ids."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from bpe_llama import _core
from bpe_llama._bad_rows import BadRows
from bpe_llama._files import PathLike, find_files, in_batches, is_parquet, read_parquet, reading_of
from bpe_llama._progress import ProgressOption, reporting


def encode_files(
    tokenizer: _core.Tokenizer,
    paths: PathLike | Iterable[PathLike],
    out: PathLike,
    *,
    end: int | None,
    separator: str | None,
    field: str,
    bad_rows: BadRows,
    num_threads: int | None,
    progress: ProgressOption,
) -> int:
    """Return the number of ids written, ``end`` after each document; see :meth:`Tokenizer.encode_files`."""
    if Path(out).suffix != ".npy":
        raise ValueError(f"out must end in .npy, got {os.fspath(out)!r}")
    files = find_files(paths)
    sizes = {path: path.stat().st_size for path in files}
    done, total = 0, sum(sizes.values())
    reading = reading_of(separator, field, bad_rows)
    target = _core.TokenFile(tokenizer, out, end, num_threads)
    try:
        with reporting(progress) as report:

            def report_more(stage: str, more: int, _total: int | None) -> None:
                if report:
                    report(stage, done + more, total)

            for is_rows, alike in itertools.groupby(files, is_parquet):
                # A Parquet file's own reader does not say how far it is, so each is a step.
                for group in [[path] for path in alike] if is_rows else [list(alike)]:
                    if is_rows:
                        for texts in in_batches(read_parquet(group, field, bad_rows)):
                            target.add_texts(texts)
                    else:
                        bad_rows.add(*target.add_files(group, reading, report_more if report else None))
                    done += sum(sizes[path] for path in group)
                    report_more("encode", 0, total)
        return target.finish()
    finally:
        target.abandon()
