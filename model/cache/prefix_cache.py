"""The prefix cache: keys and values of blocks of tokens, shared between requests.

A block is identified by a hash of all ids up to its end, so equal hashes mean equal prefixes. Blocks are stored outside
of the slots: they are copied out of a slot when they are computed, and into the slot of a later request that begins
with the same ids. For SmolLM2-135M in float32, one thread copies 1,000 tokens in 4 to 5 ms.

Shapes: ``P`` blocks of the pool, ``L`` layers, ``K`` KV heads, ``H`` head_dim.

Source: vLLM's automatic prefix caching, https://docs.vllm.ai/en/latest/design/prefix_caching.html.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256

import torch
from torch import Tensor

from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.device import check_memory

BLOCK = 32
"""Tokens of a block."""


def block_hashes(ids: Sequence[int], salt: str = "", known: Sequence[bytes] = ()) -> list[bytes]:
    """Return one hash for each full block of ids: SHA-256 of the hash before it and the ids of the block.

    Args:
        ids: The ids of a sequence, from its beginning.
        salt: Different salts give different hashes, so that clients share no blocks.
        known: The hashes of the first blocks, which are not computed again.

    Example:
        >>> one, other = block_hashes(range(70)), block_hashes([*range(32), *range(40)])
        >>> len(one), one[0] == other[0], one[1] == other[1]
        (2, True, False)
    """
    hashes = list(known)
    parent = hashes[-1] if hashes else sha256(salt.encode(errors="surrogatepass")).digest()
    for start in range(len(hashes) * BLOCK, len(ids) - BLOCK + 1, BLOCK):
        parent = sha256(parent + array("q", ids[start : start + BLOCK]).tobytes()).digest()
        hashes.append(parent)
    return hashes


class PrefixCache:
    """Blocks of keys and values in a pool of bounded size; the least recently used block is dropped first.

    The pool is allocated once. On the CPU the operating system commits its memory when blocks are first written.

    Args:
        cache: The KV cache that blocks are copied from and to; blocks have its form, dtype and device.
        max_bytes: Memory of the pool.

    Raises:
        ValueError: If the cache overwrites its first tokens (a sliding-window cache), the memory is less than that of
            one block, or there is too little memory.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> cache = KVCache(config, batch_size=2, max_length=64)
        >>> cache.lengths[0] = 40
        >>> blocks, hashes = PrefixCache(cache, 10_000), block_hashes(range(40))
        >>> blocks.save(hashes, cache, slot=0)
        >>> blocks.load(hashes, cache, slot=1), blocks.nbytes
        (32, 2048)
    """

    def __init__(self, cache: KVCache, max_bytes: int) -> None:
        if cache.wraps:
            raise ValueError("a sliding-window cache overwrites the first tokens of a slot, and has no prefix cache")
        shapes = [(*store.shape[:2], store.shape[3], BLOCK, store.shape[5]) for store in cache.stores]
        sizes = [store.element_size() for store in cache.stores]
        self.block_bytes = sum(torch.Size(s).numel() * size for s, size in zip(shapes, sizes, strict=True))
        self.max_bytes = max_bytes
        self._size = max_bytes // self.block_bytes
        if not self._size:
            raise ValueError(f"the prefix cache has {max_bytes} bytes; expected at least a block's {self.block_bytes}")
        device = cache.store.device
        check_memory(self._size * self.block_bytes, device, "the prefix cache", "use fewer bytes")
        self._pools: list[Tensor] = []
        """The blocks, one tensor for each store of the KV cache: (P, 2, L, K, BLOCK, H)."""
        with torch.inference_mode(False):
            for shape, store in zip(shapes, cache.stores, strict=True):
                self._pools.append(torch.empty(self._size, *shape, dtype=store.dtype, device=device))
        self._places: OrderedDict[bytes, int] = OrderedDict()
        """The place in the pool of each block, least recently used first."""
        self._free = list(range(self._size))[::-1]

    @property
    def nbytes(self) -> int:
        """Return the bytes of all blocks that are stored."""
        return len(self._places) * self.block_bytes

    def matched(self, hashes: Sequence[bytes]) -> int:
        """Return how many blocks are stored before the first one that is not."""
        return next((count for count, known in enumerate(hashes) if known not in self._places), len(hashes))

    def load(self, hashes: Sequence[bytes], cache: KVCache, slot: int) -> int:
        """Copy blocks into a slot, up to the first one that is not stored; return the number of tokens copied."""
        found = hashes[: self.matched(hashes)]
        for block, name in enumerate(found):
            for pool, store in zip(self._pools, cache.stores, strict=True):
                store[:, :, slot, :, block * BLOCK : (block + 1) * BLOCK] = pool[self._places[name]]
        self._touch(found)
        return len(found) * BLOCK

    def save(self, hashes: Sequence[bytes], cache: KVCache, slot: int, start: int = 0) -> None:
        """Store the blocks of a slot that are not stored yet, in place of the least recently used ones.

        Args:
            hashes: The hashes of the first blocks of the slot.
            cache: The KV cache of the slot.
            slot: The number of the slot.
            start: The first block that may not be stored yet.
        """
        own = set(hashes)
        self._touch(hashes)
        for block, name in enumerate(hashes[start:], start=start):
            if name in self._places:
                continue
            if not self._free:
                oldest = next(iter(self._places))
                if oldest in own:  # the pool is too small: keep the first blocks, which the others need
                    break
                self._free.append(self._places.pop(oldest))
            place = self._free.pop()  # an interruption before the last line below loses this place, never another block
            for pool, store in zip(self._pools, cache.stores, strict=True):
                pool[place].copy_(store[:, :, slot, :, block * BLOCK : (block + 1) * BLOCK])
            self._places[name] = place
        self._touch(hashes)

    def clear(self) -> None:
        """Drop all blocks."""
        self._places.clear()
        self._free = list(range(self._size))[::-1]

    def _touch(self, hashes: Sequence[bytes]) -> None:
        """Mark blocks as used, the first one last: a block is of no use without the blocks before it."""
        for name in reversed(hashes):
            if name in self._places:
                self._places.move_to_end(name)


def prefix_length(cached_ids: Sequence[int], prompt: Sequence[int]) -> int:
    """Return the length of the longest common prefix.

    Example:
        >>> prefix_length([5, 6, 7], [5, 6, 8, 9])
        2
    """
    pairs = zip(cached_ids, prompt)  # noqa: B905
    return next((i for i, pair in enumerate(pairs) if pair[0] != pair[1]), min(len(cached_ids), len(prompt)))
