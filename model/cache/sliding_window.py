"""A KV cache for models with a sliding window: a ring buffer of the last tokens.

Shapes: as in `kv_cache`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bpe_llama._arguments import instance, integer
from bpe_llama.model.cache.kv_cache import CacheColumns, KVCache
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.windows import most_keys


class SlidingWindowCache(KVCache):
    """A `KVCache` that holds the keys and values of the last ``sliding_window + chunk - 1`` tokens of each slot.

    Column ``c`` holds the latest token whose position is ``c`` modulo the number of columns.

    Args:
        config: Config of the model; all its layers must have the same window.
        batch_size: Slots.
        max_length: The most tokens that a sequence may have; ``config.max_position_embeddings`` by default.
        chunk: The most new tokens of one forward pass.
        dtype: Of keys and values.
        device: Device of the model.

    Raises:
        ValueError: If the layers do not share a window, a size is below 1, or there is too little memory.

    Source: the rolling buffer cache of Jiang et al. 2023, arXiv:2310.06825, section 2.

    Example:
        >>> config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, sliding_window=5)
        >>> cache = SlidingWindowCache(config, max_length=1000, chunk=4)
        >>> cache.capacity, cache.store.shape[4]
        (1000, 8)
    """

    wraps = True

    def __init__(
        self,
        config: LlamaConfig,
        batch_size: int = 1,
        max_length: int | None = None,
        *,
        chunk: int = 512,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        instance("config", config, LlamaConfig)
        window = config.windows[0]
        if window is None or len(set(config.windows)) > 1:
            found = "this model has no sliding_window" if not any(config.windows) else "its layers differ in theirs"
            raise ValueError(f"a sliding-window cache needs a window that all layers share, but {found}")
        self.chunk = chunk = integer("chunk", chunk, 1)
        self._limit = config.max_position_embeddings if max_length is None else integer("max_length", max_length, 1)
        # A pass writes all its tokens before it attends: the first one's window must still be in the cache.
        super().__init__(config, batch_size, most_keys(window) + chunk - 1, dtype=dtype, device=device)
        self._longest = [0] * self.batch_size  # tokens of each slot before `truncate`; views share the list

    @property
    def capacity(self) -> int:
        """Return the most tokens that a sequence may have; the columns are fewer."""
        return self._limit

    def place(self, batch_size: int, new: int) -> CacheColumns:
        """Return the columns of ``new`` tokens of each slot, and the position that each column then holds.

        Raises:
            ValueError: If the batch size is not the cache's, a slot is full, or ``new`` exceeds ``chunk``.
        """
        if new > self.chunk:
            raise ValueError(f"{new} tokens in one pass; expected at most the cache's chunk of {self.chunk}")
        super().place(batch_size, new)  # for its checks
        count = self.store.shape[4]
        positions_BT = self._positions(new)
        last_B1 = positions_BT[:, -1:]
        column_S = torch.arange(count, device=self.store.device)
        positions_BS = last_B1 - (last_B1 - column_S) % count
        return CacheColumns(0, count, positions_BT % count, positions_BT, positions_BS)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Drop the tokens of each slot from the given length on: the last ``chunk`` at most, or all, once a slot wraps.

        Raises:
            TypeError: If a length is not an integer.
            ValueError: If there is not one length for each slot, a slot is shorter than its new length, or tokens that
                the window covers were overwritten.
        """
        checked, longest = self._new_lengths(lengths), list(self._longest)
        for slot, (length, present) in enumerate(zip(checked, self.lengths, strict=True)):
            if length == present:
                continue
            place = self.first_slot + slot
            most = longest[place] = max(present, longest[place]) if length else 0
            if most > self.store.shape[4] and most - length > self.chunk:
                raise ValueError(
                    f"slot {slot} held {most} tokens; it cannot be cut to {length}: expected 0, or at least "
                    f"{most - self.chunk}, since a sliding-window cache drops no more than its chunk of {self.chunk}"
                )
        self.lengths[:], self._longest[:] = checked, longest

    def copy(self, source: int, target: int) -> None:
        """Copy one slot to another (several sequences of one prompt)."""
        self.store[:, :, target] = self.store[:, :, source]
        self._copy_lengths(source, target)
        self._longest[self.first_slot + target] = self._longest[self.first_slot + source]

    def reorder(self, sources: Sequence[int], start: int = 0) -> None:
        """Copy slot ``sources[slot]`` to each ``slot`` at once (beam search); all columns move."""
        sources = self._checked_sources(sources)
        self.store.copy_(self.store.index_select(2, torch.tensor(sources, device=self.store.device)))
        self._reorder_lengths(sources)
        first = self.first_slot
        self._longest[first : first + len(sources)] = [self._longest[first + source] for source in sources]

    def widened(self, max_length: int) -> KVCache:
        """Return this cache, whose sequences may now have ``max_length`` tokens; its memory does not grow."""
        self._limit = max(self._limit, max_length)
        return self
