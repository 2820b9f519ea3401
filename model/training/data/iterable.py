"""Batches and torch's data sets: any iterable as batches, and batches as an `IterableDataset` for other trainers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from bpe_llama.model.layers.documents import Documents
from bpe_llama.model.layers.loss import IGNORED
from bpe_llama.model.training.data.batches import Batch, Batches, check_ids, integers

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
        fields = {_KEYS[key]: integers(value, f"{key} of {where}") for key, value in item.items()}
        if "labels" not in fields:
            mask = fields.get("attention_mask")
            fields["labels"] = fields["ids"] if mask is None else np.where(mask > 0, fields["ids"], IGNORED)
        batch = Batch(**fields)
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        batch = Batch(integers(item[0], f"the ids of {where}"), integers(item[1], f"the labels of {where}"))
    else:
        raise ValueError(f"{where} is a {type(item).__name__}; expected a Batch, a pair of ids and labels, or a dict")
    shape = batch.ids.shape
    for name in _KEYS.values():
        field = getattr(batch, name)
        if field is not None and (field.shape != shape or field.ndim != 2):
            raise ValueError(f"{name} of {where} have shape {field.shape}; expected (B, T), that of the ids {shape}")
    mask = batch.attention_mask
    if mask is not None and mask.size and not 0 <= mask.min() <= mask.max() <= 1:
        wrong = mask.max() if mask.min() >= 0 else mask.min()
        raise ValueError(f"attention_mask of {where} holds {wrong}; expected 0 for padding, else 1")
    return batch


class BatchDataset(IterableDataset[dict[str, Tensor]]):
    """The rows of `Batches` in order, as dictionaries that the models and trainers of transformers take.

    A row has `input_ids` and `labels`, int64 (T,). Packed documents also have `document_ids`, and the `position_ids` by
    which transformers tells documents apart; other rows have an `attention_mask`.

    The workers of a `DataLoader` take turns by batches, so with its `batch_size` that of the data it yields the same
    batches whatever the workers. `state_dict` says where the next row begins, for torchdata's `StatefulDataLoader`.

    Args:
        batches: The data.
        count: Batches of one pass: the first ones.
        rank: Of this process; it gets `Batch.rows(rank, world)`. Leave it 0 where the trainer splits the rows.
        world: Processes.

    Example:
        >>> import numpy as np
        >>> from bpe_llama.model.training.data.rows import TokenBatches
        >>> batches = TokenBatches(np.arange(99, dtype=np.uint16), window=8, batch_size=2, vocab_size=99)
        >>> loader = torch.utils.data.DataLoader(BatchDataset(batches, 3), batch_size=2)
        >>> [tuple(batch["input_ids"].shape) for batch in loader]
        [(2, 8), (2, 8), (2, 8)]
    """

    def __init__(self, batches: Batches, count: int, *, rank: int = 0, world: int = 1) -> None:
        self.batches, self.count, self.rank, self.world = batches, count, rank, world
        self._next = (0, 0)
        self._resumed = False

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the rows of this worker, from the state that was loaded, else from the first one."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        first, done = self._next if self._resumed else (0, 0)
        self._resumed = False
        for index in range(first, self.count):
            if index % workers != number:
                continue
            fields = _fields(self.batches.batch(index).rows(self.rank, self.world))
            for row in range(done if index == first else 0, len(fields["labels"])):
                self._next = (index, row + 1)
                yield {name: torch.from_numpy(array[row]) for name, array in fields.items()}
        self._next = (0, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return which batch, and which of its rows, comes next."""
        return {"batch": self._next[0], "row": self._next[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next pass where the state was taken."""
        self._next = (int(state["batch"]), int(state["row"]))
        self._resumed = True


def _fields(batch: Batch) -> dict[str, npt.NDArray[np.int64]]:
    fields = {"input_ids": batch.ids, "labels": batch.labels}
    if batch.document_ids is None:
        mask = np.ones_like(batch.ids) if batch.attention_mask is None else batch.attention_mask
        return fields | {"attention_mask": mask}
    marks = torch.from_numpy(batch.document_ids)
    return fields | {"document_ids": batch.document_ids, "position_ids": Documents.of(marks, marks).positions().numpy()}
