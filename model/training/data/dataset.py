"""Batches as a `torch.utils.data.IterableDataset`, for other trainers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from bpe_llama.model.layers.documents import Documents
from bpe_llama.model.training.data.batches import Batch, Batches


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
