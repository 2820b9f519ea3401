"""Encode the text column of a data set of Hugging Face's `datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bpe_llama._encoding.batches import Batches, Item
from bpe_llama._ends import ids_around

if TYPE_CHECKING:
    import pyarrow as pa

    from bpe_llama._core import Tokenizer as CoreTokenizer

# Row `i` of a batch is `ids[offsets[i]:offsets[i + 1]]`.
Rows = tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class EncodeColumn:
    """A function for `datasets.Dataset.map`: it adds `input_ids` and `length` to a table of texts.

    Attributes:
        tokenizer: The tokenizer. `datasets` finds the result in its cache by the bytes of its pickle.
        column: The column of texts.
        template: The order of the text and the special tokens of a row.
        batch: Truncation.
        allowed_special: Special tokens to recognise in the texts, or ``"all"``.
        num_threads: For a batch; no part of the pickle, since it changes no id.
    """

    tokenizer: CoreTokenizer
    column: str
    template: tuple[Item, ...]
    batch: Batches
    allowed_special: tuple[str, ...] | str
    num_threads: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the number of threads."""
        return {name: value for name, value in vars(self).items() if name != "num_threads"}

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table with `input_ids` in place of the texts, and `length`."""
        import pyarrow as pa

        self.check_names(table.column_names)
        column = table.column(self.column)
        if column.type not in (pa.string(), pa.large_string(), pa.string_view()):
            raise ValueError(f"column {self.column!r} holds {column.type}; expected text")
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise ValueError(f"column {self.column!r} is null in row {row} of a batch; expected text: filter it first")
        ids, offsets = self._rows(column.to_pylist())
        if offsets[-1] >= 2**31:
            raise ValueError(f"a batch has {offsets[-1]:,} ids; expected less than 2**31: make batch_size smaller")
        rows = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(ids.astype(np.int32)))
        lengths = pa.array(np.diff(offsets).astype(np.int32))
        table = table.drop_columns([self.column])
        return table.append_column("input_ids", rows).append_column("length", lengths)

    def check_names(self, names: Sequence[str]) -> None:
        """Raise `ValueError` if the column of texts is missing, or a column has a name of the result."""
        if self.column not in names:
            raise ValueError(f"the data set has no column {self.column!r}; its columns are {names}")
        for name in ("input_ids", "length"):
            if name in names:
                raise ValueError(
                    f"the data set has a column {name!r}, which encode_dataset writes; rename or remove it first"
                )

    def _rows(self, texts: list[str]) -> Rows:
        """Return the rows of texts, truncated, with their special tokens."""
        ids, offsets = self.tokenizer.encode_batch_to_numpy(
            texts, self.num_threads, allowed_special=self.allowed_special
        )
        before, after = ids_around(self.template)
        added = len(before) + len(after)
        lengths = np.diff(offsets)
        is_cut = self.batch.strategy is not None and self.batch.max_length is not None
        room = (self.batch.max_length or 0) - added if is_cut else None
        if room is not None and room < 0:
            raise ValueError(f"max_length is {self.batch.max_length}; the special tokens alone are {added}")
        kept = lengths if room is None else np.minimum(lengths, room)
        if not added and np.array_equal(kept, lengths):
            return ids, offsets
        starts = offsets[:-1] + (lengths - kept if self.batch.truncation_side == "left" else 0)
        ends = np.cumsum(kept + added)
        made = np.concatenate([[0], ends]).astype(np.int64)
        out = np.empty(made[-1], np.uint32)
        for place, token in enumerate(before):
            out[made[:-1] + place] = token
        for place, token in enumerate(after):
            out[made[1:] - len(after) + place] = token
        # The place of each kept id in `ids`, and in `out`.
        within = np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)
        out[within + np.repeat(made[:-1] + len(before), kept)] = ids[within + np.repeat(starts, kept)]
        return out, made


def encode_dataset(dataset: Any, encode: EncodeColumn, batch_size: int) -> Any:
    """Return a data set, or several by name, with the texts of a column encoded; see `Tokenizer.encode_dataset`."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("encode_dataset needs datasets: pip install 'bpe_llama[hub]'") from error
    if isinstance(dataset, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        return type(dataset)({name: encode_dataset(split, encode, batch_size) for name, split in dataset.items()})
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        raise TypeError(f"expected a data set of Hugging Face's datasets, got {type(dataset).__name__}")
    names = dataset.column_names
    if names is not None:
        encode.check_names(names)
    options: dict[str, Any] = {"batched": True, "batch_size": batch_size}
    if dataset.features is not None:
        features = {name: kind for name, kind in dataset.features.items() if name != encode.column}
        features |= {"input_ids": datasets.List(datasets.Value("int32")), "length": datasets.Value("int32")}
        options["features"] = datasets.Features(features)
    dataset = dataset.with_format("arrow")
    if isinstance(dataset, datasets.Dataset):
        if not len(dataset):  # `map` would call no function
            if dataset.features[encode.column] != datasets.Value("null"):
                encode(dataset[:])  # refuses what is no text
            nothing: dict[str, list[Any]] = {name: [] for name in options["features"]}
            return datasets.Dataset.from_dict(nothing, options["features"], split=dataset.split)
        options["desc"] = "Encoding"
    return dataset.map(encode, **options).with_format(None)
