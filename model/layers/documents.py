"""Documents packed into rows: attention does not cross them, and positions restart in each.

Shapes: ``B`` batch, ``T`` length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bpe_llama.model.windows import Window, is_near

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents of each row, and the sliding window within them.

    Attributes:
        first_BT: int64, the column of the first token of each token's document.
        window: The sliding window in tokens, the query's own included, or the chunk; None attends to the whole
            document.

    Source: Ding et al. 2024, arXiv:2404.10830 (packing); Dubey et al. 2024, arXiv:2407.21783, 3.2 (document masks).
    """

    first_BT: Tensor
    window: Window | None = None
    _made: dict[str, Any] = field(default_factory=dict)  # what all layers share; Dynamo cannot trace cached_property

    @classmethod
    def of(cls, document_ids: Tensor, input_ids: Tensor, window: Window | None = None) -> Documents:
        """Return the documents of rows; a document is a run of equal numbers.

        Raises:
            ValueError: If `document_ids` have not the shape of `input_ids`, or are not integers.

        Example:
            >>> numbers = torch.tensor([[0, 0, 1, 1, 1]])
            >>> Documents.of(numbers, numbers).first_BT.tolist()
            [[0, 0, 2, 2, 2]]
        """
        if document_ids.shape != input_ids.shape or document_ids.is_floating_point():
            found = f"{document_ids.dtype} of shape {tuple(document_ids.shape)}"
            raise ValueError(f"document_ids are {found}; expected integers of shape {tuple(input_ids.shape)}")
        column_T = torch.arange(input_ids.shape[1], device=input_ids.device)
        begins_BT = torch.ones_like(document_ids, dtype=torch.bool)
        begins_BT[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        return cls(torch.where(begins_BT, column_T, 0).cummax(-1).values, window)

    @property
    def begins_BT(self) -> Tensor:
        """Return whether each token is the first of its document, bool."""
        return self.first_BT == torch.arange(self.first_BT.shape[1], device=self.first_BT.device)

    def positions(self, attention_mask: Tensor | None = None) -> Tensor:
        """Return the position of each token in its document, int64 (B, T); padding is not counted."""
        column_T = torch.arange(self.first_BT.shape[1], device=self.first_BT.device)
        if attention_mask is None:
            return column_T - self.first_BT
        present_BT = attention_mask.bool().long()
        before_BT = present_BT.cumsum(-1) - present_BT  # tokens of the row before this one
        return before_BT - before_BT.gather(1, self.first_BT)

    def maximum(self, values_BT: Tensor) -> Tensor:
        """Return the largest value of each token's document, (B, T)."""
        values_BT = values_BT.expand_as(self.first_BT)
        return torch.zeros_like(values_BT).scatter_reduce(1, self.first_BT, values_BT, "amax").gather(1, self.first_BT)

    @property
    def mask(self) -> Tensor:
        """Return whether each query attends to each key, bool (B, 1, T, T)."""
        return self._once("mask", self._mask)

    @property
    def blocks(self) -> BlockMask:
        """Return the mask for FlexAttention, which skips blocks of keys that no query of a block attends to."""
        return self._once("blocks", self._blocks)

    @property
    def lengths(self) -> list[list[int]]:
        """Return the number of tokens of each document of each row."""
        return self._once("lengths", self._lengths)

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _mask(self) -> Tensor:
        key_T = torch.arange(self.first_BT.shape[1], device=self.first_BT.device)
        query_T1 = key_T[:, None]
        mask_BTT = (key_T <= query_T1) & (key_T >= self.first_BT[..., None])
        if self.window is not None:
            mask_BTT &= is_near(self.window, query_T1, key_T, self.first_BT[..., None])
        return mask_BTT[:, None]

    def _blocks(self) -> BlockMask:
        first_BT, window = self.first_BT, self.window

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen = (key <= query) & (key >= first_BT[row, query])
            return seen if window is None else seen & is_near(window, query, key, first_BT[row, query])

        from torch.nn.attention.flex_attention import create_block_mask

        # Uncompiled it needs memory for (B, T, T) elements; on the CPU compiling takes longer than it saves.
        compiled = first_BT.is_cuda and not torch.compiler.is_compiling()
        make = _compiled_block_mask() if compiled else create_block_mask
        rows, length = first_BT.shape
        return make(sees, rows, None, length, length, device=first_BT.device)

    def _lengths(self) -> list[list[int]]:
        length = self.first_BT.shape[1]
        firsts = (first_T[begins_T].tolist() for first_T, begins_T in zip(self.first_BT, self.begins_BT, strict=True))
        return [[end - first for first, end in zip(row, [*row[1:], length], strict=True)] for row in firsts]


@cache
def _compiled_block_mask() -> Callable[..., BlockMask]:
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask)
