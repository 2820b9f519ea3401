"""Keys and values already computed, so that a new token costs one token's work.

Shapes: ``B`` slots (rows of a batch), ``K`` KV heads, ``S`` capacity, ``T`` new tokens, ``H`` head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bpe_llama.model.config import LlamaConfig


@dataclass(frozen=True)
class Places:
    """Where the new tokens of one forward pass go: the same columns in every slot, or columns of its own for each."""

    start: int
    end: int
    columns_BT: Tensor | None

    @property
    def uniform(self) -> bool:
        """Return whether every slot holds equally many tokens."""
        return self.columns_BT is None


class KVCache:
    """A preallocated store of keys and values, in slots that may hold sequences of unlike length.

    The memory, ``2 * layers * B * K * S * H`` numbers, is taken at once and written in place. Each slot has its own
    length, kept on the host, so that requests may join and leave a running batch: `rows` gives a view of some slots
    to prefill, `truncate` forgets the end of a sequence, `move` frees a slot.

    Args:
        config: Of the model the cache serves.
        batch_size: Slots.
        max_length: Tokens each slot can hold; ``config.max_position_embeddings`` by default.
        dtype: Of keys and values; that of the model.
        device: Where the model is.

    Raises:
        ValueError: If a size is below 1.

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
        max_length = config.max_position_embeddings if max_length is None else max_length
        if batch_size < 1 or max_length < 1:
            raise ValueError(f"batch_size is {batch_size} and max_length {max_length}; expected at least 1")
        shape = (2, config.num_hidden_layers, batch_size, config.kv_heads, max_length, config.head_size)
        # Zeros, not garbage: a masked column still enters a product with weight 0, and 0 * nan is nan.
        self._share(torch.zeros(shape, dtype=dtype, device=device), [0] * batch_size)

    def _share(self, store: Tensor, lengths: list[int]) -> None:
        self.store = store
        """Keys, then values, of every layer: (2, layers, B, K, S, H)."""
        self.keys, self.values = (part.unbind(0) for part in store.unbind(0))
        self.lengths = lengths

    @property
    def capacity(self) -> int:
        """Return how many tokens a slot can hold."""
        return self.keys[0].shape[2]

    @property
    def batch_size(self) -> int:
        """Return the number of slots."""
        return self.keys[0].shape[0]

    def place(self, batch_size: int, new: int) -> Places:
        """Return where ``new`` tokens of each slot go.

        Raises:
            ValueError: If the batch is not the cache's, or some slot has no room left.
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
            return Places(start, end, None)
        device = self.keys[0].device
        lengths = torch.tensor(self.lengths, device=device)
        return Places(start, end, lengths[:, None] + torch.arange(new, device=device))

    def write(self, layer: int, keys_BKTH: Tensor, values_BKTH: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; return views of all columns up to the longest slot's end.

        The slots' lengths do not change until `advance`, so that every layer writes to the same places.
        """
        for store, new in ((self.keys[layer], keys_BKTH), (self.values[layer], values_BKTH)):
            if places.columns_BT is None:
                store[:, :, places.start : places.end] = new
            else:
                rows = torch.arange(store.shape[0], device=store.device)[:, None]
                store[rows, :, places.columns_BT] = new.transpose(1, 2).to(store.dtype)
        return self.keys[layer][:, :, : places.end], self.values[layer][:, :, : places.end]

    def open(self, places: Places) -> list[tuple[Tensor, ...]]:
        """Return the views that `write` makes, of all layers at once: where new keys and values go, and what they join.

        For places that are the same in every slot; there are ``layers`` tuples of four.
        """
        new, seen = self.store[..., places.start : places.end, :], self.store[..., : places.end, :]
        return list(zip(*(part.unbind(0) for both in (new, seen) for part in both.unbind(0)), strict=True))

    def advance(self, new: int) -> None:
        """Count ``new`` more tokens in every slot."""
        self.lengths[:] = [length + new for length in self.lengths]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget what each slot holds beyond the given length (padding, a rejected draft, an old ending).

        Raises:
            ValueError: If there is not one length for each slot, or a slot holds fewer tokens than it should keep.
        """
        if len(lengths) != self.batch_size:
            raise ValueError(f"{len(lengths)} lengths for {self.batch_size} slots")
        for slot, (length, held) in enumerate(zip(lengths, self.lengths, strict=True)):
            if not 0 <= length <= held:
                raise ValueError(f"slot {slot} holds {held} tokens; it cannot be cut to {length}")
        self.lengths[:] = lengths

    def widened(self, max_length: int) -> KVCache:
        """Return a cache whose slots hold ``max_length`` tokens, and in their first columns what these hold.

        Raises:
            ValueError: If that is less than now.
        """
        if max_length < self.capacity:
            raise ValueError(f"max_length is {max_length}; expected at least the present {self.capacity}")
        wider = KVCache.__new__(KVCache)
        store = self.store.new_zeros(*self.store.shape[:4], max_length, self.store.shape[5])
        store[..., : self.capacity, :] = self.store
        wider._share(store, list(self.lengths))
        return wider

    def rows(self, start: int, end: int) -> KVCache:
        """Return a cache that shares slots ``start`` to ``end``; its lengths are its own: copy them back when done.

        Raises:
            ValueError: If the range is empty or outside the cache.
        """
        if not 0 <= start < end <= self.batch_size:
            raise ValueError(f"slots {start} to {end} are not among the cache's {self.batch_size}")
        view = KVCache.__new__(KVCache)
        view._share(self.store[:, :, start:end], self.lengths[start:end])
        return view

    def reorder(self, sources: Sequence[int], start: int = 0) -> None:
        """Make each slot hold what slot ``sources[slot]`` held before (beam search).

        Args:
            sources: One for each slot.
            start: Columns before this one are alike in all slots, and need not move.
        """
        if list(sources) == list(range(self.batch_size)):
            return
        index = torch.tensor(sources, device=self.keys[0].device)
        end = max(self.lengths)
        for layers in self.store.unbind(0):  # one at a time: what moves is copied first
            layers[..., start:end, :] = layers[..., start:end, :].index_select(1, index)
        self.lengths[:] = [self.lengths[source] for source in sources]

    def copy(self, source: int, target: int) -> None:
        """Make one slot hold what another does (samples of one prompt)."""
        length = self.lengths[source]
        self.store[:, :, target, :, :length] = self.store[:, :, source, :, :length]
        self.lengths[target] = self.lengths[source]

    def move(self, source: int, target: int) -> None:
        """Copy one slot onto another and empty the first (a request left; the last one takes its place)."""
        self.copy(source, target)
        self.lengths[source] = 0
