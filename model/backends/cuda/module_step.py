"""A decoding step of fixed shapes by the modules of `llama.py`, for models that the Triton kernels do not compute.

Shapes: ``M`` rows, one a slot, ``S`` key length, ``D`` hidden_size, ``V`` vocab_size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bpe_llama.model.cache.kv_cache import CacheColumns, KVCache
from bpe_llama.model.layers.attention_backends import Visible
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.windows import is_near

SHORTEST = 256
"""Keys of a step are rounded up to this times a power of two, or to the cache's capacity; each length has a graph."""


class ModuleStep:
    """The step of the first slots of a cache.

    Args:
        model: One for which `unsupported_by_cuda_graph` is None.
        cache: A full one.
    """

    def __init__(self, model: LlamaForCausalLM, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        self._key_S = torch.arange(cache.capacity, device=model.device)

    def keys_of(self, longest: int) -> int:
        """Return how many columns of the cache a step attends to if the longest sequence has ``longest``."""
        end = SHORTEST
        while end < longest:
            end *= 2
        return min(end, self.cache.capacity)

    def logits(self, ids_M: Tensor, place_M: Tensor, end: int) -> Tensor:
        """Return the logits after each id, (M, V).

        Args:
            ids_M: int64.
            place_M: int64; the position of each, at which its keys and values are written to the cache. A row without
                a sequence has -1: it writes to the last column of its slot, which no sequence reads, since one that
                fills its slot has ended.
            end: Columns of the cache that are attended to, of `keys_of`.
        """
        stack, rows = self.model.model, len(ids_M)
        place_M1 = torch.where(place_M < 0, self.cache.capacity - 1, place_M)[:, None]
        mask_MS = self._key_S[:end] <= place_M1
        windows, visible = self.model.config.windows, {}
        for window in set(windows):
            near_MS = mask_MS if window is None else mask_MS & is_near(window, place_M1, self._key_S[:end])
            visible[window] = Visible(mask=near_MS[:, None, None])
        cache = self.cache if rows == self.cache.batch_size else self.cache.rows(0, rows)
        places = CacheColumns(0, end, place_M1)
        x_M1D = stack.embed_tokens(ids_M[:, None])
        for layer, rotation, window in zip(stack.layers, stack.rotations(place_M1), windows, strict=True):
            x_M1D = layer(x_M1D, rotation, visible[window], cache, places)
        logits_M1V: Tensor = self.model.logits(stack.norm(x_M1D))
        return logits_M1V[:, 0]
