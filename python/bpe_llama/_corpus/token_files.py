"""Encode files of text into one file of ids."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from bpe_llama._arguments import path as checked_path
from bpe_llama._arguments import strings
from bpe_llama._core import TokenFile, shown
from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.files import find_files, in_batches, is_parquet, read_parquet, reading_of
from bpe_llama._corpus.shards import dtype_of
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
    allowed_special: Iterable[str] = (),
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

    return write_documents(tokenizer, Path(out), begins, ends, num_threads, write, allowed_special)


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


def checked_specials(tokenizer: CoreTokenizer, allowed_special: Iterable[str] | str) -> list[str] | str:
    """Return an `allowed_special` that can be used several times and written as JSON.

    Raises:
        TypeError: If it is no collection of texts.
        ValueError: If it names no special token.
    """
    if not isinstance(allowed_special, str):
        expected = '"all" or a collection of special tokens'
        allowed_special = sorted(set(strings("allowed_special", allowed_special, expected)))
    tokenizer.encode_batch([], allowed_special=allowed_special)
    return allowed_special


def write_documents(
    tokenizer: CoreTokenizer,
    out: Path,
    begins: Sequence[int],
    ends: Sequence[int],
    num_threads: int | None,
    write: Callable[[TokenFile], None],
    allowed_special: Iterable[str] = (),
) -> int:
    """Return the number of ids in a `.npy` file of the documents that `write` adds, with `begins` and `ends` around."""
    if not begins and len(ends) < 2:
        end = ends[0] if ends else None
        return _write(TokenFile(tokenizer, out, end, num_threads, allowed_special), write)
    # The core appends one id to a document. Here it is a mark, an id that no text has, to be replaced by all of them.
    mark = tokenizer.vocab_size
    with atomic_write(out) as temporary:
        marked = temporary.with_suffix(".marked.npy")
        try:
            if not _write(TokenFile(tokenizer, marked, mark, num_threads, allowed_special), write):
                return _write(TokenFile(tokenizer, temporary, None, num_threads, ()), lambda _: None)
            return _replace_marks(marked, temporary, mark, begins, ends)
        finally:
            marked.unlink(missing_ok=True)


def _write(target: TokenFile, write: Callable[[TokenFile], None]) -> int:
    try:
        write(target)
        return target.finish()
    finally:
        target.abandon()


def _replace_marks(marked: Path, out: Path, mark: int, begins: Sequence[int], ends: Sequence[int]) -> int:
    ids = np.load(marked, mmap_mode="r")
    dtype = np.dtype(dtype_of(mark))  # the mark is the size of the vocabulary
    between = np.array([*ends, *begins], dtype)
    chunks = [ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK)]
    marks = sum(int((chunk == mark).sum()) for chunk in chunks)
    count = len(ids) + marks * (len(between) - 1)
    with open(out, "wb") as file:
        header = {"descr": dtype.str, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
        file.write(np.array(begins, dtype).tobytes())
        for number, chunk in enumerate(chunks, start=1):
            is_mark = chunk == mark
            sizes = np.where(is_mark, len(between), 1)
            wider = np.repeat(chunk.astype(dtype), sizes)
            first = (np.cumsum(sizes) - sizes)[is_mark]
            wider[first[:, None] + np.arange(len(between))] = between
            last = len(wider) - (len(begins) if number == len(chunks) else 0)  # no document follows the last mark
            file.write(wider[:last].tobytes())
    return count
