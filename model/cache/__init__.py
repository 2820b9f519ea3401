"""The KV cache, its quantized form and its sliding-window form.

| file | cache | memory of a slot |
|---|---|---|
| `kv_cache` | `KVCache`, the full one | grows with the capacity |
| `quantized` | `QuantizedCache`: int8 with scales | about a quarter of a full one in float32 |
| `sliding_window` | `SlidingWindowCache`: the last tokens alone | does not grow with the sequence |
"""

from __future__ import annotations

import torch

from bpe_llama.model.cache.kv_cache import CacheColumns, KVCache
from bpe_llama.model.cache.quantized import QuantizedCache
from bpe_llama.model.cache.sliding_window import SlidingWindowCache
from bpe_llama.model.config import LlamaConfig

__all__ = ["CacheColumns", "KVCache", "QuantizedCache", "SlidingWindowCache", "make_cache"]

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

    Args:
        form: See `FORMS`.
        config: Config of the model.
        slots: Sequences that the cache holds.
        max_length: Tokens of a sequence.
        chunk: Tokens of one forward pass, at most; only the sliding-window cache uses it.
        dtype: Of keys and values.
        device: Device of the model.

    Raises:
        ValueError: If there is no such form, the sliding-window cache is asked for and the model has no
            ``sliding_window``, or there is too little memory.

    Example:
        >>> config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> make_cache("int8", config, 2, 16, 16, torch.float32, torch.device("cpu")).store.dtype
        torch.int8
    """
    if form not in FORMS:
        raise ValueError(f"cache is {form!r}; expected one of {', '.join(FORMS)}")
    if form == "ring":
        return SlidingWindowCache(config, slots, max_length, chunk=chunk, dtype=dtype, device=device)
    return (QuantizedCache if form == "int8" else KVCache)(config, slots, max_length, dtype=dtype, device=device)
