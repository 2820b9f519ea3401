"""Grouped-query attention: many query heads look at fewer key-value heads.

Shapes: ``B`` batch, ``T`` query length, ``S`` key length, ``D`` hidden_size, ``N`` heads, ``K`` KV heads,
``G`` query heads per KV head (N / K), ``H`` head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama.model.cache import KVCache, Places
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.rope import Rotation, apply_rope


@dataclass(frozen=True)
class Visible:
    """Which keys each query may look at: every earlier one (``causal``), those of ``mask``, or all (neither).

    ``mask`` is boolean, (B or 1, 1, T, S), true where a query may look.
    """

    causal: bool = False
    mask: Tensor | None = None


def visible_keys(length: int, places: Places | None, attention_mask: Tensor | None, device: torch.device) -> Visible:
    """Return which keys the queries of one forward pass may look at; made once, used by every layer.

    Args:
        length: T, the new tokens of each row.
        places: Where a cache puts them, if there is one.
        attention_mask: (B, S), nonzero where a column holds a token and zero where it is padding; S counts the
            cached columns too. None where nothing is padded.
        device: Where the mask is to be.

    Raises:
        ValueError: If the mask does not cover S columns.
    """
    end = places.end if places else length
    if attention_mask is not None and attention_mask.shape[-1] != end:
        raise ValueError(
            f"attention_mask covers {attention_mask.shape[-1]} columns; expected {end}, cached ones included"
        )
    if attention_mask is None and (places is None or places.uniform):
        if end == length:
            return Visible(causal=True)
        if length == 1:
            return Visible()
    if places is not None and places.columns_BT is not None:
        query_BT = places.columns_BT
    else:
        query_BT = torch.arange(end - length, end, device=device)[None]
    key_S = torch.arange(end, device=device)
    mask_BTS = key_S <= query_BT[..., None]
    if attention_mask is not None:
        # A padded query may look at itself, lest its softmax divide by zero; nobody looks at its output.
        mask_BTS = mask_BTS & attention_mask.bool()[:, None] | (key_S == query_BT[..., None])
    return Visible(mask=mask_BTS[:, None])


class Attention(nn.Module):
    """Scaled dot-product attention with rotary positions, through torch's fused kernels.

    Source: Vaswani et al. 2017, arXiv:1706.03762; Ainslie et al. 2023, arXiv:2305.13245 (grouped queries).
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_size
        self.groups = config.num_attention_heads // config.kv_heads
        query, kv = config.num_attention_heads * self.head_dim, config.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv, bias=config.attention_bias)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=config.attention_bias)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation,
        visible: Visible,
        cache: KVCache | None = None,
        places: Places | None = None,
    ) -> Tensor:
        """Return what each token gathers from those it may look at, (B, T, D)."""
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        query_BNTH = apply_rope(self.q_proj(x_BTD).view(heads).transpose(1, 2), rotation)
        key_BKSH = apply_rope(self.k_proj(x_BTD).view(heads).transpose(1, 2), rotation)
        value_BKSH = self.v_proj(x_BTD).view(heads).transpose(1, 2)
        if cache is not None and places is not None:
            key_BKSH, value_BKSH = cache.write(self.layer, key_BKSH, value_BKSH, places)
        gathered_BNTH = attend(query_BNTH, key_BKSH, value_BKSH, visible)
        out: Tensor = self.o_proj(gathered_BNTH.transpose(1, 2).flatten(2))
        return out


def attend(query_BNTH: Tensor, key_BKSH: Tensor, value_BKSH: Tensor, visible: Visible) -> Tensor:
    """Return the attention of each query, (B, N, T, H).

    Keys and values are not repeated for the query heads that share them. A single token's query heads are laid out
    as if they were ``G`` queries in a row, which needs no special kernel and reads each key once.

    Example:
        >>> query, key = torch.zeros(1, 4, 1, 8), torch.zeros(1, 2, 5, 8)
        >>> attend(query, key, torch.ones(1, 2, 5, 8), Visible()).shape
        torch.Size([1, 4, 1, 8])
    """
    kv_heads, length = key_BKSH.shape[1], query_BNTH.shape[2]
    if length == 1:
        grouped = query_BNTH.view(query_BNTH.shape[0], kv_heads, -1, query_BNTH.shape[3])
        out = functional.scaled_dot_product_attention(grouped, key_BKSH, value_BKSH, attn_mask=visible.mask)
        return out.reshape(query_BNTH.shape)
    return functional.scaled_dot_product_attention(
        query_BNTH,
        key_BKSH,
        value_BKSH,
        attn_mask=visible.mask,
        is_causal=visible.causal,
        enable_gqa=query_BNTH.shape[1] != kv_heads,
    )
