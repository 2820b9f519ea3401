"""The KV cache: the keys and values of earlier tokens, so that a decoding step computes new tokens alone.

Shapes: ``B`` slots (rows of a batch), ``K`` KV heads, ``S`` capacity, ``T`` new tokens, ``H`` head_dim.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bpe_llama._arguments import instance, integer
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.device import check_memory, resolve_device


class _Unreachable(torch.autograd.Function):
    """The identity, whose backward pass raises a RuntimeError."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError(
            "a KVCache stores no gradients: the loss depends on keys and values that an earlier pass stored while "
            "gradients were recorded; compute the text in one pass, or the earlier part under torch.no_grad()"
        )


@dataclass(frozen=True)
class CacheColumns:
    """The columns of the cache that one forward pass writes.

    Attributes:
        start: The first column.
        end: One more than the last column that any slot fills.
        index_BT: The column of each new token; None if they are ``start`` to ``end`` in every slot.
        positions_BT: The position of each new token; None if it is the column's index.
        positions_BS: The position of the token in each column, negative if the column is empty; None if it is the
            column's index.
    """

    start: int
    end: int
    index_BT: Tensor | None
    positions_BT: Tensor | None = None
    positions_BS: Tensor | None = None

    @property
    def positions(self) -> Tensor | None:
        """Return the position of each new token, (B, T); None if they are ``start`` to ``end`` in every slot."""
        return self.index_BT if self.positions_BT is None else self.positions_BT

    @property
    def uniform(self) -> bool:
        """Return whether all slots have the same length."""
        return self.index_BT is None


class KVCache:
    """Preallocated keys and values in slots, one sequence each; the sequences may have different lengths.

    The memory, ``2 * layers * B * K * S * H`` elements, is allocated once and written in place. The lengths of the
    slots are on the host. Continuous batching prefills some slots through a view (`rows`), drops the end of a sequence
    (`truncate`) and frees a slot (`move`).

    Args:
        config: Config of the model.
        batch_size: Slots.
        max_length: Capacity of a slot in tokens; ``config.max_position_embeddings`` by default.
        dtype: Of keys and values; the model's.
        device: Device of the model.

    Raises:
        ValueError: If a size is below 1, or there is too little memory for all slots.

    Example:
        >>> config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> cache = KVCache(config, batch_size=2, max_length=16)
        >>> cache.lengths, cache.capacity
        ([0, 0], 16)
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch_size: int = 1,
        max_length: int | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        instance("config", config, LlamaConfig)
        max_length = config.max_position_embeddings if max_length is None else integer("max_length", max_length, 1)
        batch_size = integer("batch_size", batch_size, 1)
        if dtype is not None:
            instance("dtype", dtype, torch.dtype)
        device = None if device is None else resolve_device(device)
        heads, size = config.cache_shape
        shape = (2, config.num_hidden_layers, batch_size, heads, max_length, size)
        nbytes = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
        what = f"a cache of {batch_size} slots of {max_length:,} tokens"
        check_memory(nbytes, device, what, "use fewer slots, a shorter max_length, or another form")
        # Zeros, not uninitialized memory: a masked column has the attention weight 0, and 0 * nan is nan.
        self._share([torch.zeros(shape, dtype=dtype, device=device)], [0] * batch_size, [0] * batch_size)
        self.dtype = self.store.dtype

    def _share(self, stores: list[Tensor], lengths: list[int], prompt_lengths: list[int]) -> None:
        self.stores = stores
        """Keys, then values, of every layer: (2, layers, B, K, S, H); the quantized form appends its scales."""
        self.keys, self.values = (part.unbind(0) for part in stores[0].unbind(0))
        self.lengths = lengths
        self.prompt_lengths = prompt_lengths
        """The length of each slot's prompt, 0 if unknown; RoPE scaling that depends on the sequence length uses it."""
        self.whole, self.first_slot = stores[0], 0
        """The store of all slots, of which `rows` returns a view, and the first slot of the view."""

    @property
    def store(self) -> Tensor:
        """Return keys, then values, of every layer: (2, layers, B, K, S, H)."""
        return self.stores[0]

    @property
    def capacity(self) -> int:
        """Return the most tokens that a sequence may have."""
        return self.store.shape[4]

    _records, _recorded = False, False
    """Whether the current pass records gradients, and whether an earlier one did."""

    wraps = False
    """Whether new tokens overwrite the first ones of a slot, so that `truncate` cannot restore an earlier state."""

    @property
    def batch_size(self) -> int:
        """Return the number of slots."""
        return self.keys[0].shape[0]

    def check_model(self, config: LlamaConfig, dtype: torch.dtype) -> None:
        """Raise `ValueError` unless the cache is one for models of this config and dtype.

        Under autocast the dtype may differ: attention casts keys and values.
        """
        found = len(self.keys), self.store.shape[3], self.store.shape[5]
        expected = config.num_hidden_layers, *config.cache_shape
        if found != expected:
            sizes = " and ".join("{} layers with {} KV heads of {}".format(*each) for each in (found, expected))
            raise ValueError(f"the cache and the model have {sizes}; expected the cache of this model's config")
        if self.dtype != dtype and not torch.is_autocast_enabled(self.store.device.type):
            raise ValueError(f"the cache has dtype {self.dtype}; expected the model's, {dtype}")

    def place(self, batch_size: int, new: int) -> CacheColumns:
        """Return the columns of ``new`` tokens of each slot.

        Raises:
            ValueError: If the batch size is not the cache's, or a slot is full.
        """
        if batch_size != self.batch_size:
            raise ValueError(f"the batch has {batch_size} rows, but the cache has {self.batch_size} slots")
        start, end = min(self.lengths), max(self.lengths) + new
        if end > self.capacity:
            slot = self.lengths.index(max(self.lengths))
            raise ValueError(
                f"slot {slot} holds {self.lengths[slot]} tokens and {new} more exceed the cache's {self.capacity}"
            )
        if end - new == start:
            return CacheColumns(start, end, None)
        return CacheColumns(start, end, self._positions(new))

    def _positions(self, new: int) -> Tensor:
        """Return the positions of the next tokens of each slot, (B, new)."""
        lengths_B = torch.tensor(self.lengths, device=self.store.device)
        return lengths_B[:, None] + torch.arange(new, device=self.store.device)

    def write(self, layer: int, keys_BKTH: Tensor, values_BKTH: Tensor, columns: CacheColumns) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; return views of all columns up to ``columns.end``.

        The slots' lengths do not change until `advance`, so that every layer writes to the same columns.
        """
        self._put(self.keys[layer], keys_BKTH, columns)
        self._put(self.values[layer], values_BKTH, columns)
        return self.keys[layer][:, :, : columns.end], self.values[layer][:, :, : columns.end]

    def extend(
        self, layer: int, keys_BKTH: Tensor, values_BKTH: Tensor, columns: CacheColumns
    ) -> tuple[Tensor, Tensor]:
        """Call `write`; if autograd is on, return copies through which gradients flow to the new keys and values.

        Keys and values of earlier passes without autograd are constants. If an earlier pass recorded gradients, a
        backward pass that reaches its keys and values raises a RuntimeError, since their gradients are lost.
        """
        if not (torch.is_grad_enabled() and (keys_BKTH.requires_grad or values_BKTH.requires_grad)):
            return self.write(layer, keys_BKTH, values_BKTH, columns)
        index_BT = columns.index_BT
        if index_BT is None:
            index_BT = torch.arange(columns.start, columns.end, device=keys_BKTH.device)[None]
        rows = torch.arange(self.batch_size, device=keys_BKTH.device)[:, None]
        self._recorded &= max(self.lengths) > 0
        with torch.no_grad():
            stored = self.write(layer, keys_BKTH, values_BKTH, columns)
        whole = []
        for part_BKSH, new_BKTH in zip(stored, (keys_BKTH, values_BKTH), strict=True):
            # Copies, since later passes write to the store before the backward pass. New columns hold stored values.
            copy_BKSH = part_BKSH.clone()
            if self._recorded:
                copy_BKSH = _Unreachable.apply(copy_BKSH.requires_grad_())
                copy_BKSH = copy_BKSH.clone()
            new_BTKH = (new_BKTH - new_BKTH.detach()).transpose(1, 2).to(copy_BKSH.dtype)
            copy_BKSH[rows, :, index_BT] = part_BKSH[rows, :, index_BT] + new_BTKH
            whole.append(copy_BKSH)
        self._records = True
        return whole[0], whole[1]

    @staticmethod
    def _put(store_BKSH: Tensor, new_BKTH: Tensor, columns: CacheColumns) -> None:
        if columns.index_BT is None:
            store_BKSH[:, :, columns.start : columns.end] = new_BKTH
        else:
            rows = torch.arange(store_BKSH.shape[0], device=store_BKSH.device)[:, None]
            store_BKSH[rows, :, columns.index_BT] = new_BKTH.transpose(1, 2).to(store_BKSH.dtype)

    def advance(self, new: int) -> None:
        """Add ``new`` to the length of every slot."""
        self._recorded |= self._records
        self.lengths[:] = [length + new for length in self.lengths]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Drop the tokens of each slot from the given length on (padding, rejected draft tokens).

        Raises:
            TypeError: If a length is not an integer.
            ValueError: If there is not one length for each slot, or a slot is shorter than its new length.
        """
        self.lengths[:] = self._new_lengths(lengths)

    def _new_lengths(self, lengths: Sequence[int]) -> list[int]:
        """Return the checked argument of `truncate`."""
        if len(lengths) != self.batch_size:
            raise ValueError(f"{len(lengths)} lengths for {self.batch_size} slots")
        checked = [integer(f"lengths[{slot}]", length) for slot, length in enumerate(lengths)]
        for slot, (length, present) in enumerate(zip(checked, self.lengths, strict=True)):
            if not 0 <= length <= present:
                raise ValueError(f"slot {slot} holds {present} tokens; it cannot be cut to {length}")
        return checked

    @torch.inference_mode(False)  # a tensor allocated in inference mode could not be written to outside of it
    @torch.no_grad()
    def widened(self, max_length: int) -> KVCache:
        """Return a copy of this cache with a larger capacity.

        Raises:
            ValueError: If ``max_length`` is less than the present capacity, or there is too little memory.
        """
        if max_length < self.capacity:
            raise ValueError(f"max_length is {max_length}; expected at least the present {self.capacity}")
        sizes = [store.nbytes // self.capacity * max_length for store in self.stores]
        check_memory(sum(sizes), self.store.device, f"a cache of slots of {max_length:,} tokens", "use fewer slots")
        wider, stores = copy.copy(self), []
        for store in self.stores:
            stores.append(store.new_zeros(*store.shape[:4], max_length, store.shape[5]))
            stores[-1][..., : self.capacity, :] = store
        wider._share(stores, list(self.lengths), list(self.prompt_lengths))
        return wider

    def rows(self, start: int, end: int) -> KVCache:
        """Return a view of the slots from ``start`` to ``end``: the memory is shared, the lengths are copied.

        Raises:
            ValueError: If the range is empty or outside the cache.
        """
        if not 0 <= start < end <= self.batch_size:
            raise ValueError(f"slots {start} to {end} are not among the cache's {self.batch_size}")
        view = copy.copy(self)
        stores = [store[:, :, start:end] for store in self.stores]
        view._share(stores, self.lengths[start:end], self.prompt_lengths[start:end])
        view.whole, view.first_slot = self.whole, self.first_slot + start
        return view

    def reorder(self, sources: Sequence[int], start: int = 0) -> None:
        """Copy slot ``sources[slot]`` to each ``slot`` at once (beam search).

        Args:
            sources: One slot for each slot.
            start: The first column that differs between slots; earlier ones are not copied.

        Raises:
            TypeError: If a source is not an integer.
            ValueError: If there is not one source for each slot, or one is not a slot.
        """
        sources = self._checked_sources(sources)
        if sources == list(range(self.batch_size)):
            return
        index = torch.tensor(sources, device=self.keys[0].device)
        end = max(self.lengths)
        for layers in (
            part for store in self.stores for part in store.unbind(0)
        ):  # index_select copies before the write
            layers[..., start:end, :] = layers[..., start:end, :].index_select(1, index)
        self._reorder_lengths(sources)

    def _checked_sources(self, sources: Sequence[int]) -> list[int]:
        """Return the checked argument of `reorder`."""
        checked = [integer(f"sources[{slot}]", source) for slot, source in enumerate(sources)]
        if len(checked) != self.batch_size:
            raise ValueError(f"sources is {checked}; expected one slot for each of {self.batch_size}")
        for slot, source in enumerate(checked):
            if not 0 <= source < self.batch_size:
                raise ValueError(f"sources[{slot}] is {source}; expected 0 to {self.batch_size - 1}")
        return checked

    def _reorder_lengths(self, sources: Sequence[int]) -> None:
        self.lengths[:] = [self.lengths[source] for source in sources]
        self.prompt_lengths[:] = [self.prompt_lengths[source] for source in sources]

    def zero(self, slot: int) -> None:
        """Overwrite a slot with zeros: its keys or values may be NaN, which no mask hides."""
        for store in self.stores:
            store[:, :, slot].zero_()

    def copy(self, source: int, target: int) -> None:
        """Copy one slot to another (several sequences of one prompt)."""
        length = self.lengths[source]
        for store in self.stores:
            store[:, :, target, :, :length] = store[:, :, source, :, :length]
        self._copy_lengths(source, target)

    def _copy_lengths(self, source: int, target: int) -> None:
        self.lengths[target], self.prompt_lengths[target] = self.lengths[source], self.prompt_lengths[source]
