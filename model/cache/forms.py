"""Smaller caches: keys and values in int8, and a ring that keeps what a sliding window still sees.

Shapes: as in `cache`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bpe_llama.model.cache.kv_cache import KVCache, Places
from bpe_llama.model.config import LlamaConfig

CACHE_FORMS = ("full", "int8", "ring")


class Int8Cache(KVCache):
    """A cache of a signed byte a number, with a scale for each head's key and value of a token: a quarter of float32's.

    What is read back differs from what was written by at most 1/254 of the largest number of its head. Each step makes
    the whole of a layer's keys and values anew, one layer at a time, so it saves memory rather than time.

    Example:
        >>> config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> cache = Int8Cache(config, max_length=4)
        >>> keys, _ = cache.write(0, torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), cache.place(1, 3))
        >>> keys.shape, cache.store.dtype, float(keys.mean())
        (torch.Size([1, 2, 3, 4]), torch.int8, 1.0)
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
        super().__init__(config, batch_size, max_length, dtype=torch.int8, device=device)
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        scales = torch.zeros(*self.store.shape[:5], 1, dtype=torch.float32, device=self.store.device)
        self._share([self.store, scales], self.lengths, self.prompt_lengths)

    def write(self, layer: int, keys_BKTH: Tensor, values_BKTH: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; return all columns up to the longest slot's end, made anew."""
        made = []
        for part, new_BKTH in enumerate((keys_BKTH, values_BKTH)):
            scale_BKT1 = new_BKTH.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
            codes_BKSH, scales_BKS1 = (store[part, layer] for store in self.stores)
            self._put(codes_BKSH, (new_BKTH.float() / scale_BKT1).round(), places)
            self._put(scales_BKS1, scale_BKT1, places)
            whole = codes_BKSH[:, :, : places.end] * scales_BKS1[:, :, : places.end]
            made.append(whole.to(self.dtype))
        return made[0], made[1]


class RingCache(KVCache):
    """A cache for a model with a sliding window: a slot keeps the last tokens, however many came before.

    Args:
        config: Of the model; it must have a ``sliding_window``.
        batch_size: Slots.
        max_length: Tokens a slot can count up to.
        chunk: New tokens of one pass, at most.
        dtype: Of keys and values.
        device: Where the model is.

    Raises:
        ValueError: If the model has no window, or a size is below 1.

    Example:
        >>> config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, sliding_window=5)
        >>> cache = RingCache(config, max_length=1000, chunk=4)
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
        if config.sliding_window is None:
            raise ValueError("a ring keeps what a sliding window sees, but this model has no sliding_window")
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}; expected at least 1")
        self._limit = config.max_position_embeddings if max_length is None else max_length
        self.chunk = chunk
        # A pass writes before it looks: its first token must still see a whole window.
        super().__init__(config, batch_size, config.sliding_window + chunk - 1, dtype=dtype, device=device)

    @property
    def capacity(self) -> int:
        """Return how many tokens a slot can count up to."""
        return self._limit

    def place(self, batch_size: int, new: int) -> Places:
        """Return where ``new`` tokens of each slot go, and which position each column then holds.

        Raises:
            ValueError: If the batch is not the cache's, a slot is full, or more than ``chunk`` tokens come at once.
        """
        if new > self.chunk:
            raise ValueError(f"{new} tokens at once; expected at most the ring's chunk of {self.chunk}")
        super().place(batch_size, new)  # for its refusals
        columns = self.store.shape[4]
        positions_BT = self._positions(new)
        last_B1 = positions_BT[:, -1:]
        column_S = torch.arange(columns, device=self.store.device)
        held_BS = last_B1 - (last_B1 - column_S) % columns
        return Places(0, columns, positions_BT % columns, positions_BT, held_BS)

    def copy(self, source: int, target: int) -> None:
        """Make one slot hold what another does (samples of one prompt)."""
        self.store[:, :, target] = self.store[:, :, source]
        self._copy_lengths(source, target)

    def reorder(self, sources: Sequence[int], start: int = 0) -> None:
        """Make each slot hold what slot ``sources[slot]`` held before (beam search); all columns move."""
        self.store.copy_(self.store.index_select(2, torch.tensor(sources, device=self.store.device)))
        self._reorder_lengths(sources)

    def widened(self, max_length: int) -> KVCache:
        """Return the same cache, made to count up to ``max_length``."""
        self._limit = max(self._limit, max_length)
        return self


@torch.inference_mode(False)  # what is made in it could not be written to once it is over
@torch.no_grad()
def make_cache(
    form: str,
    config: LlamaConfig,
    slots: int,
    max_length: int,
    chunk: int,
    dtype: torch.dtype,
    device: torch.device,
) -> KVCache:
    """Return a cache of the form of that name: ``"full"``, ``"int8"`` or ``"ring"``.

    Raises:
        ValueError: If there is no such form, or the model is not made for it.
    """
    if form not in CACHE_FORMS:
        raise ValueError(f"cache is {form!r}; expected one of {', '.join(CACHE_FORMS)}")
    if form == "ring":
        return RingCache(config, slots, max_length, chunk=chunk, dtype=dtype, device=device)
    return (Int8Cache if form == "int8" else KVCache)(config, slots, max_length, dtype=dtype, device=device)
