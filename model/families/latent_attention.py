"""Multi-head latent attention: the keys and values of all heads are computed from one small vector a token, the latent.

Shapes: ``B`` batch, ``T`` query length, ``S`` key length, ``D`` hidden_size, ``N`` heads, ``L`` kv_lora_rank, ``P``
qk_nope_head_dim, ``R`` qk_rope_head_dim, ``H`` the size of queries and keys (P + R), ``V`` v_head_dim, ``W`` the size
of latent and rotated key together (L + R).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama._core import shown
from bpe_llama.model.cache.kv_cache import CacheColumns, KVCache
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_values import check_size
from bpe_llama.model.layers.attention import Attention
from bpe_llama.model.layers.attention_backends import Visible, flash, sdpa
from bpe_llama.model.layers.norm import RMSNorm
from bpe_llama.model.layers.rope import Rotation, apply_interleaved_rope, apply_rope


@dataclass(frozen=True)
class LatentAttentionConfig(LlamaConfig):
    """A config of a family with latent attention.

    ``head_dim`` is ``qk_rope_head_dim``, the features of a query and of a key that are rotated. Queries are computed
    from a vector of ``q_lora_rank`` features, or without one if it is None.

    Raises:
        ValueError: If a size is below 1, or ``head_dim`` or ``num_key_value_heads`` contradicts the others.
        TypeError: If a size is not an integer.
    """

    q_lora_rank: int | None = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128

    def __post_init__(self) -> None:
        self._check(check_size, "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        for name in ("q_lora_rank", "head_dim", "num_key_value_heads"):
            if getattr(self, name) is not None:
                check_size(name, getattr(self, name))
        if self.head_dim not in (None, self.qk_rope_head_dim):
            raise ValueError(
                f"head_dim is {shown(self.head_dim)}; expected qk_rope_head_dim ({self.qk_rope_head_dim}), or none"
            )
        object.__setattr__(self, "head_dim", self.qk_rope_head_dim)
        if self.num_key_value_heads not in (None, self.num_attention_heads):
            raise ValueError(
                f"num_key_value_heads is {shown(self.num_key_value_heads)}, but in model_type {self.model_type!r} each "
                f"query head has a key of its own; expected num_attention_heads ({self.num_attention_heads})"
            )
        super().__post_init__()

    @property
    def interleaves_rope(self) -> bool:
        """Return whether neighbouring features are rotated together, not features of both halves."""
        return True

    @property
    def cache_shape(self) -> tuple[int, int]:
        """Return the heads that a KV cache stores of a token's keys, and of its values, and the size of one.

        A token's latent and its rotated key, W features, are stored as if they were the heads of keys and values:
        640 features of 576 that are needed with the default sizes; keys and values of 128 heads would be 40,960.
        """
        features = self.kv_lora_rank + self.qk_rope_head_dim
        return math.ceil(features / (2 * self.qk_rope_head_dim)), self.qk_rope_head_dim

    @property
    def query_scale(self) -> float:
        """Return the factor of queries beyond ``(P + R) ** -0.5``; YaRN's ``mscale_all_dim`` sets it."""
        scale, factor = self.rope.get("mscale_all_dim"), self.rope.get("factor")
        if not scale or not factor or factor <= 1:
            return 1.0
        return float((0.1 * scale * math.log(factor) + 1.0) ** 2)


class LatentAttention(Attention):
    """Attention in which a token's latent and one rotated key, shared by all heads, are all that is cached.

    The latent is expanded to keys and values of all heads; or, for a few queries over many cached tokens, the queries
    are projected to the latents instead, which are then keys and values of every head: the same result up to rounding.

    Source: DeepSeek-AI 2024, arXiv:2405.04434, section 2.1.
    """

    def __init__(self, config: LatentAttentionConfig, layer: int) -> None:
        nn.Module.__init__(self)
        self.layer, self.heads = layer, config.num_attention_heads
        self.latent, self.plain, self.rotated = config.kv_lora_rank, config.qk_nope_head_dim, config.qk_rope_head_dim
        self.key, self.value = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
        self.cached_heads = config.cache_shape[0]
        size, rank, bias = config.hidden_size, config.q_lora_rank, config.attention_bias
        if rank is None:
            self.q_proj = nn.Linear(size, self.heads * self.key, bias=False)
        else:
            self.q_a_proj = nn.Linear(size, rank, bias=bias)
            self.q_a_layernorm = RMSNorm(rank, 1e-6)  # the constant in transformers, too
            self.q_b_proj = nn.Linear(rank, self.heads * self.key, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(size, self.latent + self.rotated, bias=bias)
        self.kv_a_layernorm = RMSNorm(self.latent, 1e-6)
        self.kv_b_proj = nn.Linear(self.latent, self.heads * (self.plain + self.value), bias=False)
        self.o_proj = nn.Linear(self.heads * self.value, size, bias=bias)
        self.query_rank, self.interleaved = rank, config.interleaves_rope
        self.query_scale = config.query_scale
        self.attention_dropout = config.attention_dropout
        self.backend = sdpa

    @property
    def features(self) -> int:
        """Return how many features a key and a value of a head have together."""
        return self.key + self.value

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation,
        visible: Visible,
        cache: KVCache | None = None,
        columns: CacheColumns | None = None,
    ) -> Tensor:
        """Return the attention output, (B, T, D); with a cache, append latents and rotated keys to it."""
        batch, length, _ = x_BTD.shape
        query_BNTH = self.queries(x_BTD).view(batch, length, self.heads, self.key).transpose(1, 2)
        plain_BNTP, query_BNTR = torch.split(query_BNTH, [self.plain, self.rotated], dim=-1)
        latent_BTL, key_BTR = torch.split(self.kv_a_proj_with_mqa(x_BTD), [self.latent, self.rotated], dim=-1)
        apply = apply_interleaved_rope if self.interleaved else apply_rope
        query_BNTR, key_B1TR = apply(query_BNTR, rotation), apply(key_BTR[:, None], rotation)
        latent_BTL = self.kv_a_layernorm(latent_BTL).to(key_BTR.dtype)  # under autocast the norm returns float32
        known_BSW = torch.cat((latent_BTL, key_B1TR[:, 0]), dim=-1)
        if cache is not None and columns is not None:
            known_BSW = self._cached(known_BSW, cache, columns)
        if self.projects_queries(length, known_BSW.shape[1]):
            out_BNTV = self._attend_to_latents(plain_BNTP, query_BNTR, known_BSW, visible)
        else:
            out_BNTV = self._attend_to_heads(plain_BNTP, query_BNTR, known_BSW, visible)
        return self.o_proj(out_BNTV.transpose(1, 2).flatten(2))

    def queries(self, x_BTD: Tensor) -> Tensor:
        """Return the queries of all heads before they are rotated, (B, T, N H)."""
        if self.query_rank is not None:
            x_BTD = self.q_a_layernorm(self.q_a_proj(x_BTD))
        return (self.q_proj if self.query_rank is None else self.q_b_proj)(x_BTD)

    def _cached(self, new_BTW: Tensor, cache: KVCache, columns: CacheColumns) -> Tensor:
        """Append latents and rotated keys to the cache, and return all of it, (B, S, W)."""
        unused = 2 * self.cached_heads * self.rotated - new_BTW.shape[-1]
        heads_BTKR = functional.pad(new_BTW, (0, unused)).view(*new_BTW.shape[:2], -1, self.rotated)
        first_BKTR, second_BKTR = heads_BTKR.transpose(1, 2).chunk(2, dim=1)
        stored = cache.extend(self.layer, first_BKTR, second_BKTR, columns)
        return torch.cat(stored, dim=1).transpose(1, 2).flatten(2)[..., : new_BTW.shape[-1]]

    def projects_queries(self, length: int, keys: int) -> bool:
        """Return whether T queries over S keys take fewer multiplications in the latents' space than in the heads'.

        Projecting reads the matrix of `kv_b_proj`, which an adapted or quantized layer lacks, and needs larger heads
        than flash attention computes.
        """
        if type(self.kv_b_proj) is not nn.Linear or self.backend is flash:
            return False
        expansion = self.latent * (self.plain + self.value)
        in_latents = length * keys * (2 * self.latent + self.rotated) + length * expansion
        return in_latents < length * keys * (self.key + self.value) + keys * expansion

    def _attend_to_heads(self, plain_BNTP: Tensor, query_BNTR: Tensor, known_BSW: Tensor, visible: Visible) -> Tensor:
        """Return the attention output over the keys and values of each head, (B, N, T, V)."""
        latent_BSL, key_BSR = torch.split(known_BSW, [self.latent, self.rotated], dim=-1)
        heads_BNSF = self.kv_b_proj(latent_BSL).view(*known_BSW.shape[:2], self.heads, -1).transpose(1, 2)
        key_BNSP, value_BNSV = torch.split(heads_BNSF, [self.plain, self.value], dim=-1)
        key_BNSH = torch.cat((key_BNSP, key_BSR[:, None].expand(-1, self.heads, -1, -1)), dim=-1)
        query_BNTH = torch.cat((plain_BNTP, query_BNTR), dim=-1)
        return self._attend(query_BNTH, key_BNSH, value_BNSV, visible)[..., : self.value]

    def _attend_to_latents(self, plain_BNTP: Tensor, query_BNTR: Tensor, known_BSW: Tensor, visible: Visible) -> Tensor:
        """Return the attention output over the latents, which all heads share, (B, N, T, V)."""
        weight_NFL = self.kv_b_proj.weight.view(self.heads, -1, self.latent)
        key_NPL, value_NVL = torch.split(weight_NFL, [self.plain, self.value], dim=1)
        query_BNTW = torch.cat((plain_BNTP @ key_NPL, query_BNTR), dim=-1)
        known_B1SW = known_BSW[:, None]
        out_BNTL = self._attend(query_BNTW, known_B1SW, known_B1SW, visible)[..., : self.latent]
        return out_BNTL @ value_NVL.mT

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Visible) -> Tensor:
        """Return the attention output with scores scaled for H features; zeros make the sizes of the three equal.

        Torch's fast kernels need equal sizes; on a CPU they take half the time of the general one.
        """
        size = max(key.shape[-1], value.shape[-1])
        query = query * (self.query_scale * math.sqrt(size / self.key))
        query, key, value = (functional.pad(part, (0, size - part.shape[-1])) for part in (query, key, value))
        return self.attend(query, key, value, visible)
