"""Encode files of text into one file of ids."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from bpe_llama._arguments import path as checked_path
from bpe_llama._core import TokenFile, shown
from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.files import find_files, in_batches, is_parquet, read_parquet, reading_of
from bpe_llama._files import PathLike, atomic_write
from bpe_llama._progress import ProgressOption, reporting

_CHUNK = 1 << 20
"""The number of ids that are rewritten at a time."""


def encode_files(
    tokenizer: CoreTokenizer,
    paths: PathLike | Iterable[PathLike],
    out: PathLike,
    *,
    begins: Sequence[int],
    ends: Sequence[int],
    separator: str | None,
    field: str,
    bad_rows: BadRows,
    num_threads: int | None,
    progress: ProgressOption,
) -> int:
    """Return the number of ids written: ``begins``, a document, ``ends``, and so on.

    :meth:`bpe_llama.Tokenizer.encode_files` documents the arguments.
    """
    if checked_path("out", out).suffix != ".npy":
        raise ValueError(f"out must end in .npy, got {shown(out)}")
    files = find_files(paths)
    sizes = {path: path.stat().st_size for path in files}
    done, total = 0, sum(sizes.values())
    reading = reading_of(separator, field, bad_rows)

    def write(target: TokenFile) -> None:
        nonlocal done
        with reporting(progress) as report:

            def report_more(stage: str, more: int, _total: int | None) -> None:
                if report:
                    report(stage, done + more, total)

            for is_rows, alike in itertools.groupby(files, is_parquet):
                # The Parquet reader reports no progress, so each file is one step of the bar.
                for group in [[path] for path in alike] if is_rows else [list(alike)]:
                    if is_rows:
                        for texts in in_batches(read_parquet(group, field, bad_rows)):
                            target.add_texts(texts)
                    else:
                        bad_rows.add(*target.add_files(group, reading, report_more if report else None))
                    done += sum(sizes[path] for path in group)
                    report_more("encode", 0, total)

    return write_documents(tokenizer, Path(out), begins, ends, num_threads, write)


def begins_and_ends(tokenizer: CoreTokenizer) -> tuple[list[int], list[int]]:
    """Return the ids before and after a document in training data.

    The post-processor of the tokenizer's file names them. If it appends nothing, ``eos_id`` is appended, if there is
    one.
    """
    items = tokenizer.template(False)
    place = next(number for number, (_, text, _) in enumerate(items) if text is not None)
    before, after = ([token for token, _, _ in part if token is not None] for part in (items[:place], items[place:]))
    if not after and tokenizer.eos_id is not None:
        after = [tokenizer.eos_id]
    return before, after


def write_documents(
    tokenizer: CoreTokenizer,
    out: Path,
    begins: Sequence[int],
    ends: Sequence[int],
    num_threads: int | None,
    write: Callable[[TokenFile], None],
) -> int:
    """Return the number of ids in a `.npy` file of the documents that `write` adds, with `begins` and `ends` around."""
    if not begins and len(ends) < 2:
        return _write(tokenizer, out, ends[0] if ends else None, num_threads, write)
    # The core appends one id to a document. Here it is a mark, an id that no text has, to be replaced by all of them.
    mark = tokenizer.vocab_size if tokenizer.vocab_size != 1 << 16 else [*begins, *ends][0]
    with atomic_write(out) as temporary:
        marked = temporary.with_suffix(".marked.npy")
        try:
            if not _write(tokenizer, marked, mark, num_threads, write):
                return _write(tokenizer, temporary, None, num_threads, lambda _: None)
            return _replace_marks(marked, temporary, mark, begins, ends)
        finally:
            marked.unlink(missing_ok=True)


def _write(
    tokenizer: CoreTokenizer,
    out: PathLike,
    end: int | None,
    num_threads: int | None,
    write: Callable[[TokenFile], None],
) -> int:
    target = TokenFile(tokenizer, out, end, num_threads)
    try:
        write(target)
        return target.finish()
    finally:
        target.abandon()


def _replace_marks(marked: Path, out: Path, mark: int, begins: Sequence[int], ends: Sequence[int]) -> int:
    ids = np.load(marked, mmap_mode="r")
    between = np.array([*ends, *begins], ids.dtype)
    chunks = [ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK)]
    marks = sum(int((chunk == mark).sum()) for chunk in chunks)
    count = len(ids) + marks * (len(between) - 1)
    with open(out, "wb") as file:
        header = {"descr": ids.dtype.str, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
        file.write(np.array(begins, ids.dtype).tobytes())
        for number, chunk in enumerate(chunks, start=1):
            is_mark = chunk == mark
            sizes = np.where(is_mark, len(between), 1)
            wider = np.repeat(chunk, sizes)
            first = (np.cumsum(sizes) - sizes)[is_mark]
            wider[first[:, None] + np.arange(len(between))] = between
            last = len(wider) - (len(begins) if number == len(chunks) else 0)  # no document follows the last mark
            file.write(wider[:last].tobytes())
    return count
