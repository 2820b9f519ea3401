"""Counting and encoding on many machines, with Ray Data: ``pip install 'bpe_llama[scale]'``.

Counts are sums, so they are made block by block where the blocks are, dealt out by hash into shards, and added shard by
shard; only the distinct words ever travel. A task that is lost is run again by Ray and counts the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from bpe_llama.training import DEFAULT_PATTERN, WordCounts

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

    from bpe_llama.tokenizer import Tokenizer

__all__ = ["count_words", "encode_dataset"]


def count_words(
    dataset: ray.data.Dataset,
    column: str = "text",
    *,
    pattern: str = DEFAULT_PATTERN,
    special_tokens: Sequence[str] = (),
    shards: int = 8,
) -> WordCounts:
    """Return the counts of the words in a dataset's texts: equal to counting them on one machine.

    Args:
        dataset: Any Ray dataset; each row is one document.
        column: The column that holds the text. Missing values are left out.
        pattern: See :meth:`WordCounts.from_files`.
        special_tokens: Likewise.
        shards: In how many parts, at most 16, counts are added at the same time.

    Raises:
        ValueError: If there is no such column, the pattern is unknown, or special tokens repeat.

    Cost:
        Each block is read once. What travels is the distinct words of each block with their counts.
    """
    special_tokens = list(special_tokens)
    # What is wrong with the options is said here, not by a worker; it is also the count of no text.
    total = WordCounts.from_iterator([], pattern=pattern, special_tokens=special_tokens, progress=False)
    if column not in (names := dataset.columns() or []):
        raise ValueError(f"the dataset has no column {column!r}; it has {names}")

    def count_block(block: pa.Table) -> pa.Table:
        import pyarrow as pa

        texts = (text for text in block.column(column).to_pylist() if text is not None)
        # Ray runs one task a processor already.
        counts = WordCounts.from_iterator(
            texts, pattern=pattern, special_tokens=special_tokens, num_threads=1, progress=False
        )
        parts = [part.to_bytes() for part in counts.split(shards)]
        return pa.table({"shard": list(range(len(parts))), "counts": pa.array(parts, pa.large_binary())})

    counted = dataset.select_columns([column]).map_batches(count_block, batch_format="pyarrow", batch_size=None)
    added = counted.groupby("shard").map_groups(_add_counts, batch_format="pyarrow")
    return reduce(add, (WordCounts.from_bytes(row["counts"]) for row in added.iter_rows()), total)


def _add_counts(group: pa.Table) -> pa.Table:
    """Return one row: the sum of a shard's counts."""
    import pyarrow as pa

    total = reduce(add, (WordCounts.from_bytes(counts.as_py()) for counts in group.column("counts")))
    return pa.table({"shard": group.column("shard")[:1], "counts": pa.array([total.to_bytes()], pa.large_binary())})


def encode_dataset(
    dataset: ray.data.Dataset, tokenizer: Tokenizer, column: str = "text", *, output: str = "input_ids"
) -> ray.data.Dataset:
    """Return the dataset with a column of ids, a list of ``uint32`` a row. It is computed when it is read.

    Args:
        dataset: Any Ray dataset.
        tokenizer: Sent to the workers.
        column: The column that holds the text; a missing value becomes no ids.
        output: The name of the new column.

    Raises:
        ValueError: If there is no such column.
    """
    if column not in (names := dataset.columns() or []):
        raise ValueError(f"the dataset has no column {column!r}; it has {names}")

    def encode_block(block: pa.Table) -> pa.Table:
        import pyarrow as pa

        texts = [text or "" for text in block.column(column).to_pylist()]
        ids, offsets = tokenizer.encode_batch_to_numpy(texts, num_threads=1)
        rows: Any = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(ids, pa.uint32()))
        return block.append_column(output, rows)

    return dataset.map_batches(encode_block, batch_format="pyarrow", batch_size=None)
