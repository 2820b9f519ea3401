"""The KV cache and its smaller forms."""

from bpe_llama.model.cache.kv_cache import KVCache, Places

__all__ = ["KVCache", "Places"]
