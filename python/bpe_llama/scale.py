"""Count and encode on several machines with Ray Data: ``pip install 'bpe_llama[scale]'``.

Each block is counted on the machine that holds it. Its counts are split into shards by hash, and each shard is summed
separately, so only distinct words cross the network. Ray repeats a lost task, with the same counts.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpe_llama._arguments import path as checked_path
from bpe_llama._arguments import string
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.files import find_files
from bpe_llama._corpus.shards import Shard
from bpe_llama._corpus.worker_errors import raised_by_workers, raised_for_driver
from bpe_llama._files import PathLike
from bpe_llama._progress import ProgressOption, reporting
from bpe_llama.counts import DEFAULT_PATTERN, WordCounts, splitting_of
from bpe_llama.counts import count_files as count_files_here

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

    from bpe_llama._corpus.shards import TokenShards
    from bpe_llama.tokenizer import Tokenizer

__all__ = ["cluster", "count_files", "count_words", "encode_corpus", "encode_dataset"]

# The shard of the skipped rows, beside the shards of counts.
_SKIPPED = -1


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Connect to a Ray cluster, and disconnect at the end. Ray Data logs to its files only, not to the console.

    Args:
        address: ``"auto"`` for the cluster that runs here, ``"local"`` for a new one on this machine for the duration
            of the connection, or the address of a cluster.

    Raises:
        ImportError: If Ray is not installed.
        ConnectionError: If no cluster answers.
        ValueError: If the address is empty or malformed.
    """
    if not string("address", address).strip():
        raise ValueError(f"the address of the Ray cluster is {address!r}; expected auto, local or HOST:PORT")
    _check_installed()
    import ray.data

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
            handler.setLevel(logging.CRITICAL)  # an error is raised instead
        yield
    finally:
        for handler, level in zip(console, levels, strict=True):
            handler.setLevel(level)
        ray.shutdown()


def _check_installed() -> None:
    """Raise an ImportError that names the extra if Ray is not installed."""
    try:
        import ray.data  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError("bpe_llama.scale needs Ray: pip install 'bpe_llama[scale]'") from error


def _check_answers(address: str) -> None:
    """Raise if nothing listens at ``HOST:PORT``: Ray would try for two minutes, then end the process."""
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
    """Return the counts of the words in files, counted by Ray's workers: equal to :meth:`WordCounts.from_files`.

    One worker counts a whole file, so documents are the same as on one machine.

    Args:
        paths: As for :meth:`WordCounts.from_files`, like all arguments but the last. Every worker must see the files
            under the same names.
        pattern: Likewise.
        special_tokens: Likewise.
        separator: Likewise.
        field: Likewise.
        on_error: Likewise. The warning names the first row of one worker.
        shards: The number of parts, at most 16, that are summed in parallel.

    Warns:
        UserWarning: The number of skipped rows and the place of one.

    Raises:
        FileNotFoundError: If nothing matches one of the paths, or a worker does not find a file.
        OSError: If a worker cannot read a file.
        ValueError: If the pattern is unknown, special tokens repeat, a row holds no text, or a file is not of its
            format.
    """
    _check_installed()
    import ray.data

    all_bad_rows = BadRows(on_error)
    special_tokens = list(special_tokens)
    total = WordCounts.from_iterator([], pattern=pattern, special_tokens=special_tokens, progress=False)
    # Files are dealt from largest to smallest into a few shares a processor, so all end at about the same time.
    files = sorted((path.absolute() for path in find_files(paths)), key=lambda path: -path.stat().st_size)
    resources: Any = ray.cluster_resources  # Ray has no type for it
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
    total = _sum_of(counted, total, all_bad_rows, shards)
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
        on_error: ``"raise"`` an error at a row that is null or no text, or ``"skip"`` and warn of their number.
        shards: The number of parts, at most 16, that are summed in parallel.

    Warns:
        UserWarning: The number of skipped rows.

    Raises:
        ValueError: If there is no such column, it does not hold text, the pattern is unknown, or special tokens repeat.

    Cost:
        Each block is read once. The distinct words of each block and their counts cross the network.
    """
    all_bad_rows = BadRows(on_error)
    special_tokens = list(special_tokens)
    # These empty counts start the sum, and check the options before any worker starts.
    total = WordCounts.from_iterator([], pattern=pattern, special_tokens=special_tokens, progress=False)
    if column not in (names := dataset.columns() or []):
        raise ValueError(f"the dataset has no column {column!r}; it has {names}")

    def count_block(block: pa.Table) -> pa.Table:
        bad_rows = BadRows(on_error)
        # Ray runs one task a processor, so one thread suffices.
        with raised_for_driver():
            texts = [text for _, text in _texts_of(block, column, bad_rows)]
            counts = WordCounts.from_iterator(
                texts, pattern=pattern, special_tokens=special_tokens, num_threads=1, progress=False
            )
        return _shard_table(counts, bad_rows, shards)

    texts_only = dataset.select_columns([column])
    counted = texts_only.map_batches(count_block, batch_format="pyarrow", batch_size=None)
    total = _sum_of(counted, total, all_bad_rows, shards)
    all_bad_rows.warn(stacklevel=2)
    return total


def _texts_of(block: pa.Table, column: str, bad_rows: BadRows) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each row of a block; rows without text go to ``bad_rows``."""
    for row, text in enumerate(block.column(column).to_pylist()):
        if isinstance(text, str):
            yield row, text
        else:
            what = "is null" if text is None else f"holds {type(text).__name__} {text!r:.40}"
            bad_rows.skip_or_raise(f"row {row} of a block: column {column!r} {what}, where text was expected")


def _shard_table(counts: WordCounts, bad_rows: BadRows, shards: int) -> pa.Table:
    """Return one row for each shard of the counts, and one for the skipped rows."""
    import pyarrow as pa

    parts = [part.to_bytes() for part in counts.split(shards)]
    skipped = json.dumps([bad_rows.count, bad_rows.first]).encode()
    data = pa.array([skipped, *parts], pa.large_binary())
    return pa.table({"shard": [_SKIPPED, *range(len(parts))], "counts": data})


def _sum_of(counted: ray.data.Dataset, total: WordCounts, bad_rows: BadRows, shards: int) -> WordCounts:
    """Return the sum of ``total`` and all counts, summed shard by shard."""
    # Ray would make 200 partitions, each a task.
    added = counted.groupby("shard", num_partitions=shards + 1).map_groups(_add_counts, batch_format="pyarrow")
    with raised_by_workers():
        for row in added.iter_rows():
            if row["shard"] == _SKIPPED:
                bad_rows.add(*json.loads(row["counts"]))
            else:
                total += WordCounts.from_bytes(row["counts"])
    return total


def _add_counts(group: pa.Table) -> pa.Table:
    """Return one row: the sum of a shard's counts, or of the skipped rows."""
    import pyarrow as pa

    shard, parts = group.column("shard")[:1], group.column("counts").to_pylist()
    if shard[0].as_py() == _SKIPPED:
        skipped = [json.loads(part) for part in parts]
        first = min((first for _, first in skipped if first is not None), default=None)  # of any worker
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
    """Return the dataset with a column of ids, a list of ``uint32`` a row, computed on reading.

    Args:
        dataset: Any Ray dataset.
        tokenizer: Sent to the workers.
        column: The column that holds the text.
        output: The name of the new column.
        on_error: ``"raise"`` an error at a row that is null or no text, on reading, or ``"skip"`` such rows. Each
            worker warns of their number, block by block.

    Raises:
        ValueError: If there is no such column, or one named ``output``, or ``on_error`` is unknown.
    """
    BadRows(on_error)
    if column not in (names := dataset.columns() or []):
        raise ValueError(f"the dataset has no column {column!r}; it has {names}")
    if output in names:
        raise ValueError(f"the dataset has a column {output!r}, which encode_dataset writes; rename or remove it first")

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


def encode_corpus(
    paths: PathLike | Iterable[PathLike],
    tokenizer: Tokenizer,
    out: PathLike,
    *,
    separator: str | None = None,
    eos: bool = True,
    bos: bool | None = None,
    field: str = "text",
    on_error: str = "raise",
    shard_tokens: int = 100_000_000,
    allowed_special: Iterable[str] | str = (),
    progress: ProgressOption = None,
) -> TokenShards:
    """Return the token shards that Ray's workers write to a folder: the ids and documents of one machine, in order.

    A worker encodes a whole file, or consecutive files of about one shard, and its last shard may be smaller. The
    shards depend on the files and `shard_tokens`, not on the cluster. A later run goes on after finished shards.

    Args:
        paths: As for :meth:`bpe_llama.Tokenizer.encode_corpus`, like the other arguments. Every worker must see the
            files, and the folder, under the same names.
        tokenizer: Sent to the workers.
        out: Likewise.
        separator: Likewise.
        eos: Likewise.
        bos: Likewise.
        field: Likewise.
        on_error: Likewise. The warning names the first row of one worker.
        shard_tokens: Likewise.
        allowed_special: Likewise.
        progress: Likewise, in steps of one worker's files.

    Warns:
        UserWarning: The number of skipped rows and the place of one.

    Raises:
        FileNotFoundError: Likewise; also if the folder that a worker wrote to is not this machine's.
        ValueError: Likewise.
    """
    _check_installed()
    import ray.data

    from bpe_llama._corpus.encode_corpus import CorpusEncoder

    all_bad_rows = BadRows(on_error)
    begins, ends = tokenizer.ids_around_documents(bos, eos)
    corpus = CorpusEncoder.of(
        tokenizer,
        paths,
        checked_path("out", out).absolute(),
        begins=begins,
        ends=ends,
        separator=separator,
        field=field,
        on_error=on_error,
        shard_tokens=shard_tokens,
        allowed_special=allowed_special,
    )
    corpus = replace(corpus, files=[path.absolute() for path in corpus.files])  # workers may have another folder
    parts = corpus.parts()
    sizes = [sum(corpus.files[number].stat().st_size for number in part) for part in parts]

    def write_parts(block: pa.Table) -> pa.Table:
        import pyarrow as pa

        written = []
        for number in block.column("part").to_pylist():
            bad_rows = BadRows(on_error)
            with raised_for_driver():
                shards = corpus.write_part(f"shard-{number:05}", parts[number], 1, bad_rows, None)
            written.append(json.dumps([[asdict(shard) for shard in shards], bad_rows.count, bad_rows.first]))
        return pa.table({"part": block.column("part"), "written": written})

    with corpus.begun(on_ray=True) as shards, reporting(progress) as report, raised_by_workers():
        if shards is not None:
            return shards
        dataset = ray.data.from_items([{"part": n} for n in range(len(parts))], override_num_blocks=len(parts))
        found: dict[int, list[Shard]] = {}
        for row in dataset.map_batches(write_parts, batch_format="pyarrow", batch_size=None).iter_rows():
            entries, count, first = json.loads(row["written"])
            found[row["part"]] = [Shard(**entry) for entry in entries]
            all_bad_rows.add(count, first)
            if report:
                report("encode", sum(sizes[number] for number in found), sum(sizes))
        shards = corpus.finish([shard for number in sorted(found) for shard in found[number]])
    all_bad_rows.warn(stacklevel=2)
    return shards
