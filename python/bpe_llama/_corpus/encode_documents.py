"""Encode the documents of files, a few megabytes at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bpe_llama._core import DocumentEncoder
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.files import in_batches, is_parquet, read_parquet
from bpe_llama._progress import Report


class Place(NamedTuple):
    """How far the inputs are encoded: `documents` of the file with this number, and all files before it."""

    file: int = 0
    documents: int = 0


class Batch(NamedTuple):
    """Encoded documents: see `DocumentEncoder`."""

    ids: npt.NDArray[np.uint32]
    ends: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    files: npt.NDArray[np.int64]


def encode_documents(
    encoder: Callable[[Sequence[Path]], DocumentEncoder],
    files: Sequence[Path],
    part: range,
    start: Place,
    field: str,
    bad_rows: BadRows,
    report: Report | None,
) -> Generator[Batch, None, None]:
    """Yield the ids of the documents of some files.

    Args:
        encoder: Returns an encoder of the files that it is called with.
        files: All files.
        part: The numbers of those that are encoded.
        start: Where in them to begin.
        field: The column of Parquet files that holds the text.
        bad_rows: Gets the rows without text.
        report: Called with the progress, in bytes.
    """
    sizes = {number: files[number].stat().st_size for number in part}
    done, total = sum(sizes[number] for number in range(part.start, start.file)), sum(sizes.values())
    skip = start.documents
    numbers = range(start.file, part.stop)
    for is_rows, alike in itertools.groupby(numbers, lambda number: is_parquet(files[number])):
        group = list(alike)
        paths = [files[number] for number in group]
        encode = encoder([] if is_rows else paths)
        if is_rows:
            for number, path in zip(group, paths, strict=True):
                for texts in in_batches(itertools.islice(read_parquet([path], field, bad_rows), skip, None)):
                    batch = Batch(*encode.encode_texts(texts))
                    yield batch._replace(files=batch.files + number)
                done, skip = done + sizes[number], 0
                if report:
                    report("encode", done, total)
            continue
        while skip:
            skip = encode.skip(skip)
        while (found := encode.next_batch()) is not None:
            batch = Batch(*found)
            yield batch._replace(files=batch.files + group[0])
            if report:
                report("encode", done + encode.bytes_read(), total)
        bad_rows.add(*encode.skipped())
        done += sum(sizes[number] for number in group)
        if report:
            report("encode", done, total)
