"""Counting and encoding on many machines, with Ray Data: ``pip install 'bpe_llama[scale]'``.

Counts are sums, so they are made block by block where the blocks are, dealt out by hash into shards, and added shard by
shard; only the distinct words ever travel. A task that is lost is run again by Ray and counts the same.
"""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.files import find_files
from bpe_llama._files import PathLike
from bpe_llama.counts import DEFAULT_PATTERN, WordCounts, splitting_of
from bpe_llama.counts import count_files as count_files_here

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

    from bpe_llama.tokenizer import Tokenizer

__all__ = ["cluster", "count_files", "count_words", "encode_dataset"]

# The shard that holds not counts, but which rows were skipped.
_SKIPPED = -1


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Connect to a Ray cluster, and leave it at the end. In between, what Ray Data logs goes to its files alone.

    Args:
        address: ``"auto"`` for the cluster that runs here, ``"local"`` for a new one on this machine that ends with the
            connection, or a cluster's address.

    Raises:
        ImportError: If Ray is not installed.
        ConnectionError: If there is no such cluster.
        ValueError: If the address is none.
    """
    try:
        import ray.data
    except ImportError as error:
        raise ImportError("counting on Ray needs Ray: pip install 'bpe_llama[scale]'") from error
    _check_answers(address)
    try:
        ray.init(address, log_to_driver=False)
    except SystemExit as error:  # Ray's way to give up after two minutes
        raise ConnectionError(f"no Ray cluster answers at {address!r}") from error
    console = [
        handler for handler in logging.getLogger("ray.data").handlers if isinstance(handler, logging.StreamHandler)
    ]
    levels = [handler.level for handler in console]
    try:
        for handler in console:
            handler.setLevel(logging.CRITICAL)  # an error is raised, which says it once
        yield
    finally:
        for handler, level in zip(console, levels, strict=True):
            handler.setLevel(level)
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse ``HOST:PORT`` where nothing listens: Ray would try for two minutes, then end the process."""
    host, _, port = address.rpartition(":")
    if not host or "://" in address or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster answers at {address!r}: {error}") from error


def count_files(
    paths: PathLike | Iterable[PathLike],
    *,
    pattern: str = DEFAULT_PATTERN,
    special_tokens: Sequence[str] = (),
    separator: str | None = None,
    field: str = "text",
    on_error: str = "raise",
    shards: int = 8,
) -> WordCounts:
    """Return the counts of the words in files, counted where Ray runs: equal to :meth:`WordCounts.from_files`.

    A file is counted by one worker, so that documents are what they are on one machine.

    Args:
        paths: As for :meth:`WordCounts.from_files`, like all arguments but the last. Every worker must see the files
            under the same names.
        pattern: Likewise.
        special_tokens: Likewise.
        separator: Likewise.
        field: Likewise.
        on_error: Likewise. The row that the warning names is the first of one worker's.
        shards: In how many parts, at most 16, counts are added at the same time.

    Warns:
        UserWarning: How many rows were skipped, and where one of them stands.

    Raises:
        FileNotFoundError: If nothing matches one of the paths, or a worker does not find a file.
        OSError: If a worker cannot read a file.
        ValueError: If the pattern is unknown, special tokens repeat, a row holds no text, or a file is not of its
            format.
    """
    import ray.data

    all_bad_rows = BadRows(on_error)
    special_tokens = list(special_tokens)
    total = WordCounts.from_iterator([], pattern=pattern, special_tokens=special_tokens, progress=False)
    # Dealt out from the largest to the smallest, a few shares a processor: all end at about the same time.
    files = sorted((path.absolute() for path in find_files(paths)), key=lambda path: -path.stat().st_size)
    resources: Any = ray.cluster_resources  # Ray does not say its type
    num_shares = min(len(files), 4 * max(1, int(resources().get("CPU", 1))))
    shares = [{"paths": list(map(str, files[start::num_shares]))} for start in range(num_shares)]

    def count_share(block: pa.Table) -> pa.Table:
        share = [path for row in block.column("paths").to_pylist() for path in row]
        bad_rows = BadRows(on_error)
        with raised_for_driver():
            splitting = splitting_of(pattern, special_tokens, num_threads=1)
            files = list(map(Path, share))
            counts = count_files_here(files, splitting, separator, field, bad_rows, progress=False)
        return _shard_table(WordCounts(counts), bad_rows, shards)

    dataset = ray.data.from_items(shares, override_num_blocks=num_shares)
    counted = dataset.map_batches(count_share, batch_format="pyarrow", batch_size=None)
    total = _sum_of(counted, total, all_bad_rows)
    all_bad_rows.warn(stacklevel=2)
    return total


def count_words(
    dataset: ray.data.Dataset,
    column: str = "text",
    *,
    pattern: str = DEFAULT_PATTERN,
    special_tokens: Sequence[str] = (),
    on_error: str = "raise",
    shards: int = 8,
) -> WordCounts:
    """Return the counts of the words in a dataset's texts: equal to counting them on one machine.

    Args:
        dataset: Any Ray dataset; each row is one document.
        column: The column that holds the text.
        pattern: See :meth:`WordCounts.from_files`.
        special_tokens: Likewise.
        on_error: ``"raise"`` an error at a row that is null or no text, or ``"skip"`` them and warn of their number.
        shards: In how many parts, at most 16, counts are added at the same time.

    Warns:
        UserWarning: How many rows were skipped.

    Raises:
        ValueError: If there is no such column, it holds something else than text, the pattern is unknown, or special
            tokens repeat.

    Cost:
        Each block is read once. What travels is the distinct words of each block with their counts.
    """
    all_bad_rows = BadRows(on_error)
    special_tokens = list(special_tokens)
    # What is wrong with the options is said here, not by a worker; it is also the count of no text.
    total = WordCounts.from_iterator([], pattern=pattern, special_tokens=special_tokens, progress=False)
    if column not in (names := dataset.columns() or []):
        raise ValueError(f"the dataset has no column {column!r}; it has {names}")

    def count_block(block: pa.Table) -> pa.Table:
        bad_rows = BadRows(on_error)
        # Ray runs one task a processor already.
        with raised_for_driver():
            texts = [text for _, text in _texts_of(block, column, bad_rows)]
            counts = WordCounts.from_iterator(
                texts, pattern=pattern, special_tokens=special_tokens, num_threads=1, progress=False
            )
        return _shard_table(counts, bad_rows, shards)

    texts_only = dataset.select_columns([column])
    counted = texts_only.map_batches(count_block, batch_format="pyarrow", batch_size=None)
    total = _sum_of(counted, total, all_bad_rows)
    all_bad_rows.warn(stacklevel=2)
    return total


def _texts_of(block: pa.Table, column: str, bad_rows: BadRows) -> Iterator[tuple[int, str]]:
    """Yield the rows of a block that hold text, each with its number there; the others go to ``bad_rows``."""
    for row, text in enumerate(block.column(column).to_pylist()):
        if isinstance(text, str):
            yield row, text
        else:
            what = "is null" if text is None else f"holds {type(text).__name__} {text!r:.40}"
            bad_rows.skip_or_raise(f"row {row} of a block: column {column!r} {what}, where text was expected")


def _shard_table(counts: WordCounts, bad_rows: BadRows, shards: int) -> pa.Table:
    """Return one row a shard of the counts, and one for the rows that were skipped."""
    import pyarrow as pa

    parts = [part.to_bytes() for part in counts.split(shards)]
    skipped = json.dumps([bad_rows.count, bad_rows.first]).encode()
    data = pa.array([skipped, *parts], pa.large_binary())
    return pa.table({"shard": [_SKIPPED, *range(len(parts))], "counts": data})


def _sum_of(counted: ray.data.Dataset, total: WordCounts, bad_rows: BadRows) -> WordCounts:
    """Return ``total`` and all counts together, each shard having been added by itself."""
    added = counted.groupby("shard").map_groups(_add_counts, batch_format="pyarrow")
    with raised_by_workers():
        for row in added.iter_rows():
            if row["shard"] == _SKIPPED:
                bad_rows.add(*json.loads(row["counts"]))
            else:
                total += WordCounts.from_bytes(row["counts"])
    return total


def _add_counts(group: pa.Table) -> pa.Table:
    """Return one row: the sum of a shard's counts, or of the rows that were skipped."""
    import pyarrow as pa

    shard, parts = group.column("shard")[:1], group.column("counts").to_pylist()
    if shard[0].as_py() == _SKIPPED:
        skipped = [json.loads(part) for part in parts]
        first = min((first for _, first in skipped if first is not None), default=None)  # whichever came first
        total = json.dumps([sum(count for count, _ in skipped), first]).encode()
    else:
        total = reduce(add, map(WordCounts.from_bytes, parts)).to_bytes()
    return pa.table({"shard": shard, "counts": pa.array([total], pa.large_binary())})


def encode_dataset(
    dataset: ray.data.Dataset,
    tokenizer: Tokenizer,
    column: str = "text",
    *,
    output: str = "input_ids",
    on_error: str = "raise",
) -> ray.data.Dataset:
    """Return the dataset with a column of ids, a list of ``uint32`` a row. It is computed when it is read.

    Args:
        dataset: Any Ray dataset.
        tokenizer: Sent to the workers.
        column: The column that holds the text.
        output: The name of the new column.
        on_error: ``"raise"`` an error at a row that is null or no text, when the dataset is read, or ``"skip"``: leave
            such rows out. As nothing is read here, the warning of their number comes from each worker, for a block.

    Raises:
        ValueError: If there is no such column, or ``on_error`` is neither.
    """
    BadRows(on_error)
    if column not in (names := dataset.columns() or []):
        raise ValueError(f"the dataset has no column {column!r}; it has {names}")

    def encode_block(block: pa.Table) -> pa.Table:
        import pyarrow as pa

        bad_rows = BadRows(on_error)
        kept = list(_texts_of(block, column, bad_rows))
        bad_rows.warn(stacklevel=1)
        if bad_rows.count:
            block = block.take([row for row, _ in kept])
        ids, offsets = tokenizer.encode_batch_to_numpy([text for _, text in kept], num_threads=1)
        rows: Any = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(ids, pa.uint32()))
        return block.append_column(output, rows)

    return dataset.map_batches(encode_block, batch_format="pyarrow", batch_size=None)


# -- errors of workers -------------------------------------------------------------------------------------------------

# Of a worker's exception, Ray passes on the text of its traceback alone. So a worker writes kind and arguments into the
# message, as one line of JSON between marks. The traceback quotes lines of this file, so none may match the marks.
_KINDS: tuple[type[Exception], ...] = (FileNotFoundError, OSError, TypeError, ValueError)
_MARKED = "<bpe_llama worker: {} :worker bpe_llama>"
_MARKED_IN_TEXT = re.compile(_MARKED.format(r"(\[\d+, .*\])"))


class WorkerError(Exception):
    """What a worker raises in place of an error of its input."""


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
    """Where a result is read, raise what a worker marked; other errors pass as they are.

    Raises:
        OSError: If a worker met one; likewise ``FileNotFoundError``, ``TypeError`` and ``ValueError``.
    """
    try:
        yield
    except Exception as error:
        if (marked := _MARKED_IN_TEXT.search(str(error))) is None:
            raise
        kind, arguments = json.loads(marked[1])
        raise _KINDS[kind](*arguments) from error
