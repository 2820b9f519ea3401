"""Rows of ids as models take them: cut, padded, in tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Batches:
    """How rows become a batch, checked; see :meth:`bpe_llama.Tokenizer.__call__`."""

    padding: bool | str
    truncation: bool
    max_length: int | None
    return_tensors: str | None
    padding_side: str

    def __post_init__(self) -> None:
        if self.padding not in (True, False, "longest", "max_length"):
            raise ValueError(f"padding must be True, False, 'longest' or 'max_length', got {self.padding!r}")
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {self.padding_side!r}")
        if self.return_tensors not in (None, "np", "pt"):
            raise ValueError(f"return_tensors must be None, 'np' or 'pt', got {self.return_tensors!r}")
        if (self.truncation or self.padding == "max_length") and self.max_length is None:
            raise ValueError("truncation=True and padding='max_length' need max_length")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {self.max_length}")

    def of(self, rows: list[list[int]], fill: int, *, is_single: bool) -> dict[str, Any]:
        """Return ``input_ids`` and ``attention_mask`` of the rows; of the only row, if ``is_single`` and no tensors."""
        if self.truncation:
            rows = [row[: self.max_length] for row in rows]
        masks = [[1] * len(row) for row in rows]
        if self.padding:
            width = max(map(len, rows), default=0)
            if self.padding == "max_length" and self.max_length is not None:
                width = self.max_length
            for row, mask in zip(rows, masks, strict=True):
                missing = max(0, width - len(row))
                at = len(row) if self.padding_side == "right" else 0
                row[at:at] = [fill] * missing
                mask[at:at] = [0] * missing
        if self.return_tensors is None:
            if is_single:
                return {"input_ids": rows[0], "attention_mask": masks[0]}
            return {"input_ids": rows, "attention_mask": masks}
        if len({len(row) for row in rows}) > 1:
            raise ValueError("rows differ in length: pass padding=True to make tensors of them")
        arrays = {"input_ids": np.array(rows, np.int64), "attention_mask": np.array(masks, np.int64)}
        if self.return_tensors == "np":
            return arrays
        import torch

        return {name: torch.from_numpy(array) for name, array in arrays.items()}
