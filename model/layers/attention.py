"""Grouped-query attention: several query heads share one key-value head.

Shapes: ``B`` batch, ``T`` query length, ``S`` key length, ``D`` hidden_size, ``N`` heads, ``K`` KV heads,
``H`` head_dim.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bpe_llama._arguments import instance
from bpe_llama.model.cache.kv_cache import CacheColumns, KVCache
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.layers.attention_backends import Backend, Visible, sdpa
from bpe_llama.model.layers.documents import Documents
from bpe_llama.model.layers.linear import linear
from bpe_llama.model.layers.norm import RMSNorm
from bpe_llama.model.layers.rope import Rotation, apply_rope
from bpe_llama.model.windows import Chunk, Window, is_near, most_keys


def visible_keys(
    length: int,
    columns: CacheColumns | None,
    attention_mask: Tensor | None,
    device: torch.device,
    window: Window | None = None,
    documents: Documents | None = None,
) -> Visible:
    """Return the keys that each query of a forward pass attends to; it is computed once for all layers.

    Args:
        length: T, the new tokens of each row.
        columns: The cache columns of the new tokens; None without a cache.
        attention_mask: (B, S), nonzero for tokens and zero for padding; S includes the cached columns. None if nothing
            is padded.
        device: Device of the mask.
        window: The sliding window in tokens, the query's own included, or the chunk; None attends to all.
        documents: The documents packed into each row; needs ``columns`` to be None.

    Raises:
        ValueError: If the mask does not cover S columns.
    """
    end = columns.end if columns else length
    if columns is not None and columns.positions_BS is not None and columns.positions_BT is not None:
        if attention_mask is not None:
            raise ValueError("a sliding-window cache takes no attention_mask; give each row a length of its own")
        query_BT1, key_B1S = columns.positions_BT[..., None], columns.positions_BS[:, None]
        mask_BTS = (key_B1S >= 0) & (key_B1S <= query_BT1)
        if window is not None:
            mask_BTS &= is_near(window, query_BT1, key_B1S)
        return Visible(mask=mask_BTS[:, None])
    if attention_mask is not None:
        instance("attention_mask", attention_mask, Tensor, "a tensor, (batch, length)")
        columns_given = attention_mask.shape[-1] if attention_mask.ndim else 0
        if columns_given != end:
            raise ValueError(f"attention_mask covers {columns_given} columns; expected {end}, cached ones included")
    if documents is not None:
        apart = attention_mask is not None and isinstance(window, Chunk)  # chunks are counted without padding
        within = Documents(documents.first_BT, None if apart else window)
        if attention_mask is None:
            return Visible(causal=True, documents=within)
        mask_B1TT = within.mask & attention_mask.bool()[:, None, None]
        if apart and window is not None:
            position_BT = documents.positions(attention_mask)
            mask_B1TT &= is_near(window, position_BT[:, None, :, None], position_BT[:, None, None])
        return Visible(mask=mask_B1TT | torch.eye(length, dtype=torch.bool, device=device))
    window_covers_all = window is None or most_keys(window) >= end
    if attention_mask is None and window_covers_all and (columns is None or columns.uniform):
        if end == length or (length > 1 and device.type == "cuda"):  # flash attention then reads no mask
            return Visible(causal=True)
        if length == 1:
            return Visible()
    if columns is not None and columns.index_BT is not None:
        query_BT1 = columns.index_BT[..., None]
    else:
        query_BT1 = torch.arange(end - length, end, device=device)[None, :, None]
    key_S = torch.arange(end, device=device)
    mask_BTS = key_S <= query_BT1
    if window is not None:
        mask_BTS = mask_BTS & is_near(window, query_BT1, key_S, _first_column(attention_mask))
    if attention_mask is not None:
        # A padded query attends to itself, so that its softmax is defined; its output is never used.
        mask_BTS = mask_BTS & attention_mask.bool()[:, None] | (key_S == query_BT1)
    return Visible(mask=mask_BTS[:, None])


def _first_column(attention_mask: Tensor | None) -> Tensor | int:
    """Return the column of each row's first token, int64 (B, 1, 1)."""
    return 0 if attention_mask is None else (attention_mask.cumsum(-1) == 0).sum(-1)[:, None, None]


class Attention(nn.Module):
    """Scaled dot-product attention with RoPE, computed by one of `attention_backends`.

    Source: Vaswani et al. 2017, arXiv:1706.03762; Ainslie et al. 2023, arXiv:2305.13245 (grouped queries).
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_size
        query, kv = config.num_attention_heads * self.head_dim, config.kv_heads * self.head_dim
        qkv_bias, out_bias = config.attention_biases
        self.q_proj = linear(config, config.hidden_size, query, qkv_bias)
        self.k_proj = linear(config, config.hidden_size, kv, qkv_bias)
        self.v_proj = linear(config, config.hidden_size, kv, qkv_bias)
        self.o_proj = linear(config, query, config.hidden_size, out_bias)
        self.query_scale = config.query_scale
        self.attention_dropout = config.attention_dropout
        self.backend: Backend = sdpa

    @property
    def dropout(self) -> float:
        """Return the probability with which an attention weight is dropped now: 0 in evaluation."""
        return self.attention_dropout if self.training else 0.0

    @property
    def features(self) -> int:
        """Return how many features a key and a value of a head have together."""
        return 2 * self.head_dim

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation,
        visible: Visible,
        cache: KVCache | None = None,
        columns: CacheColumns | None = None,
    ) -> Tensor:
        """Return the attention output, (B, T, D); with a cache, append the new keys and values to it."""
        query_BNTH, key_BKSH, value_BKSH = self.project(x_BTD)
        query_BNTH, key_BKSH = self.positioned(query_BNTH, key_BKSH, rotation)
        if cache is not None and columns is not None:
            key_BKSH, value_BKSH = cache.extend(self.layer, key_BKSH, value_BKSH, columns)
        if self.query_scale != 1.0:
            query_BNTH = query_BNTH * self.query_scale
        attention_BNTH = self.attend(query_BNTH, key_BKSH, value_BKSH, visible)
        return self.o_proj(attention_BNTH.transpose(1, 2).flatten(2))

    def positioned(self, query_BNTH: Tensor, key_BKTH: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Return queries and keys after their positions are applied: rotated."""
        return self.rotate(query_BNTH, rotation), self.rotate(key_BKTH, rotation)

    @staticmethod
    def rotate(x_BNTH: Tensor, rotation: Rotation) -> Tensor:
        """Return rotated queries or keys, same shape and dtype."""
        return apply_rope(x_BNTH, rotation)

    @property
    def input_linears(self) -> list[nn.Linear]:
        """Return the linear layers that compute, side by side, queries, keys and values."""
        return [self.q_proj, self.k_proj, self.v_proj]

    def attend(self, query_BNTH: Tensor, key_BKSH: Tensor, value_BKSH: Tensor, visible: Visible) -> Tensor:
        """Return the attention output of rotated queries and keys, (B, N, T, H), by the backend."""
        return self.backend(query_BNTH, key_BKSH, value_BKSH, visible, self.dropout)

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, N, T, H), keys and values (B, K, T, H), before they are rotated."""
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        query_BNTH = self.q_proj(x_BTD).view(heads).transpose(1, 2)
        key_BKTH = self.k_proj(x_BTD).view(heads).transpose(1, 2)
        return query_BNTH, key_BKTH, self.v_proj(x_BTD).view(heads).transpose(1, 2)


class HeadNormAttention(Attention):
    """Attention with RMSNorm over each head of queries and keys, before they are rotated.

    Source: Dehghani et al. 2023, arXiv:2302.05442, section 2.
    """

    norm_class: ClassVar[type[Any]] = RMSNorm

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.q_norm = self.norm_class(self.head_dim, config.norm_eps)
        self.k_norm = self.norm_class(self.head_dim, config.norm_eps)

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return normalized queries (B, N, T, H) and keys, and values (B, K, T, H)."""
        query_BNTH, key_BKTH, value_BKTH = super().project(x_BTD)
        return self.q_norm(query_BNTH), self.k_norm(key_BKTH), value_BKTH
