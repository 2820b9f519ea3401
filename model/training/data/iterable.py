"""Batches of any iterable, such as a `torch.utils.data.DataLoader`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bpe_llama.model.training.data.batches import Batch, check_ids

_KEYS = {"input_ids": "ids", "labels": "labels", "attention_mask": "attention_mask", "document_ids": "document_ids"}
_END = object()


class IterableBatches:
    """The micro-batches that an iterable yields, in its order.

    An item is a `Batch`, a pair of ids and labels, or a dictionary with `input_ids`, and with or without `labels` (the
    ids, padding excluded), `attention_mask` and `document_ids`, as the collators of transformers return; arrays or
    tensors of integers, (B, T). Labels are not shifted.

    An iterable that ends is iterated again: an epoch. To resume, the batches before the step are read and dropped, so
    the run is the same only if the iterable yields the same batches again.

    Args:
        source: The iterable.
        vocab_size: Ids must be below it.
        longest: Most tokens of a row.

    Example:
        >>> batches = IterableBatches([{"input_ids": np.array([[1, 2, 3]])}])
        >>> batches.batch(0).labels, batches.tokens_before(1)
        (array([[1, 2, 3]]), 3)
    """

    def __init__(self, source: Iterable[Any], vocab_size: int | None = None, longest: int | None = None) -> None:
        self.source, self.vocab_size, self.longest = source, vocab_size, longest
        self._iterator: Iterator[Any] = iter(source)
        self._tokens, self._ends = [0], list[int]()  # tokens before each batch; the batches after which epochs ended

    @property
    def fingerprint(self) -> str:
        """Return the type of the iterable; its data are not known beforehand."""
        return f"batches of a {type(self.source).__name__}"

    def batch(self, index: int) -> Batch:
        """Return batch `index`; those before it are read and dropped.

        Raises:
            ValueError: If the batch was read before, is invalid, or the iterable has ended and cannot begin again.
        """
        read = len(self._tokens) - 1
        if index < read:
            raise ValueError(f"batch {index} of the {type(self.source).__name__} was read before; the next is {read}")
        for number in range(read, index + 1):
            where = f"batch {number}"
            batch = _as_batch(self._next(number), where)
            if self.longest is not None and batch.ids.shape[1] > self.longest:
                length = f"{batch.ids.shape[1]:,} tokens"
                raise ValueError(f"{where} has rows of {length}, the model's context is {self.longest:,}")
            if self.vocab_size is not None:
                check_ids(batch.ids, self.vocab_size, f" of {where}")
            size = batch.ids.size if batch.attention_mask is None else int(batch.attention_mask.sum())
            self._tokens.append(self._tokens[-1] + size)
        return batch

    def tokens_before(self, index: int) -> int:
        """Return the number of tokens in the batches that were read before `index`."""
        return self._tokens[min(index, len(self._tokens) - 1)]

    def epochs(self, index: int) -> dict[str, float]:
        """Return how often the iterable began again in the batches before `index`."""
        return {"": float(sum(end < index for end in self._ends))}

    def _next(self, number: int) -> Any:
        item = next(self._iterator, _END)
        if item is _END:
            self._iterator = iter(self.source)
            self._ends.append(number)
            item = next(self._iterator, _END)
        if item is _END:
            raise ValueError(
                f"the data end after {number:,} batches, and the {type(self.source).__name__} cannot begin again; "
                "expected enough for max_steps, or an iterable that yields batches each time it is iterated"
            )
        return item


def _as_batch(item: Any, where: str) -> Batch:
    """Return what an iterable yielded as a `Batch`; an error says `where` it was."""
    if isinstance(item, Batch):
        batch = item
    elif isinstance(item, Mapping):
        if unknown := sorted(map(str, item.keys() - _KEYS.keys())):
            raise ValueError(f"{where} has {', '.join(unknown)}; expected {', '.join(_KEYS)}")
        if "input_ids" not in item:
            raise ValueError(f"{where} has no input_ids")
        fields = {_KEYS[key]: _integers(value, f"{key} of {where}") for key, value in item.items()}
        if "labels" not in fields:
            mask = fields.get("attention_mask")
            fields["labels"] = fields["ids"] if mask is None else np.where(mask > 0, fields["ids"], -100)
        batch = Batch(**fields)
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        batch = Batch(_integers(item[0], f"the ids of {where}"), _integers(item[1], f"the labels of {where}"))
    else:
        raise ValueError(f"{where} is a {type(item).__name__}; expected a Batch, a pair of ids and labels, or a dict")
    shape = batch.ids.shape
    for name, field in vars(batch).items():
        if field is not None and (field.shape != shape or field.ndim != 2):
            raise ValueError(f"{name} of {where} have shape {field.shape}; expected (B, T), that of the ids {shape}")
    return batch


def _integers(value: Any, what: str) -> npt.NDArray[np.int64]:
    array = np.asarray(value.cpu() if hasattr(value, "cpu") else value)
    if array.dtype.kind not in "iub":
        raise ValueError(f"{what} have dtype {array.dtype}; expected integers")
    return array.astype(np.int64, copy=False)
