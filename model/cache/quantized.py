"""A KV cache in int8.

Shapes: as in `kv_cache`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bpe_llama.model.cache.kv_cache import CacheColumns, KVCache
from bpe_llama.model.config import LlamaConfig


class QuantizedCache(KVCache):
    """A `KVCache` whose elements are int8, with one float32 scale per head and token: a quarter of float32's memory.

    An element that is read differs from the one written by at most 1/254 of the largest magnitude in its head vector.
    Every pass dequantizes all columns of a layer, one layer at a time, so this cache saves memory, not time.

    Example:
        >>> config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> cache = QuantizedCache(config, max_length=4)
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

    def write(self, layer: int, keys_BKTH: Tensor, values_BKTH: Tensor, columns: CacheColumns) -> tuple[Tensor, Tensor]:
        """Quantize and store one layer's new keys and values; return all columns up to ``columns.end``, dequantized."""
        dequantized = []
        for part, new_BKTH in enumerate((keys_BKTH, values_BKTH)):
            scale_BKT1 = new_BKTH.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
            quantized_BKSH, scales_BKS1 = (store[part, layer] for store in self.stores)
            self._put(quantized_BKSH, (new_BKTH.float() / scale_BKT1).round(), columns)
            self._put(scales_BKS1, scale_BKT1, columns)
            whole_BKSH = quantized_BKSH[:, :, : columns.end] * scales_BKS1[:, :, : columns.end]
            dequantized.append(whole_BKSH.to(self.dtype))
        return dequantized[0], dequantized[1]
