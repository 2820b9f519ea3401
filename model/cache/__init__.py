"""The KV cache, its smaller forms (int8, the last tokens of a sliding window), and the prefix cache."""

from __future__ import annotations

import torch

from bpe_llama._core import shown
from bpe_llama.model.cache.kv_cache import CacheColumns, KVCache
from bpe_llama.model.cache.prefix_cache import PrefixCache
from bpe_llama.model.cache.quantized import QuantizedCache
from bpe_llama.model.cache.sliding_window import SlidingWindowCache
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_values import is_one_of

__all__ = ["CacheColumns", "KVCache", "PrefixCache", "QuantizedCache", "SlidingWindowCache", "make_cache"]

FORMS = ("full", "int8", "ring")
"""The values of the option ``cache``; ``"ring"`` is the sliding-window cache."""


@torch.inference_mode(False)  # a tensor allocated in inference mode could not be written to outside of it
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
    """Return an empty cache of a form: ``"full"``, ``"int8"`` or ``"ring"``.

    The arguments are those of the caches; only the sliding-window cache uses ``chunk``.

    Raises:
        ValueError: If there is no such form, ``"ring"`` is asked for a model without a window, or memory is too small.

    Example:
        >>> config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> make_cache("int8", config, 2, 16, 16, torch.float32, torch.device("cpu")).store.dtype
        torch.int8
    """
    if not is_one_of(form, FORMS):
        raise ValueError(f"cache is {shown(form)}; expected one of {', '.join(FORMS)}")
    if form == "ring":
        return SlidingWindowCache(config, slots, max_length, chunk=chunk, dtype=dtype, device=device)
    return (QuantizedCache if form == "int8" else KVCache)(config, slots, max_length, dtype=dtype, device=device)
