"""The product at the heart of attention, by several kernels that agree.

Shapes: ``B`` batch, ``T`` query length, ``S`` key length, ``N`` heads, ``K`` KV heads, ``G`` query heads per KV head
(N / K), ``H`` head_dim.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Visible:
    """Which keys each query may look at: every earlier one (``causal``), those of ``mask``, or all (neither).

    ``mask`` is boolean, (B or 1, 1, T, S), true where a query may look.
    """

    causal: bool = False
    mask: Tensor | None = None

    def as_mask(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """Return the boolean mask, (B or 1, 1, T, S), made if there was none."""
        if self.mask is not None:
            return self.mask
        everything = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
        return everything.tril(keys - queries) if self.causal else everything


Backend = Callable[[Tensor, Tensor, Tensor, Visible, float], Tensor]
"""Takes queries (B, N, T, H), keys and values (B, K, S, H), what is visible and the probability with which an attention
weight is dropped, its neighbours being scaled up; returns (B, N, T, H)."""


def sdpa(query_BNTH: Tensor, key_BKSH: Tensor, value_BKSH: Tensor, visible: Visible, dropout: float = 0.0) -> Tensor:
    """Return the attention of each query through torch's fused kernels.

    Keys and values are not repeated for the query heads that share them. A single token's query heads are laid out
    as if they were ``G`` queries in a row, which needs no special kernel and reads each key once.

    Example:
        >>> query, key = torch.zeros(1, 4, 1, 8), torch.zeros(1, 2, 5, 8)
        >>> sdpa(query, key, torch.ones(1, 2, 5, 8), Visible()).shape
        torch.Size([1, 4, 1, 8])
    """
    kv_heads, length = key_BKSH.shape[1], query_BNTH.shape[2]
    if length == 1:
        grouped = query_BNTH.view(query_BNTH.shape[0], kv_heads, -1, query_BNTH.shape[3])
        out = functional.scaled_dot_product_attention(
            grouped, key_BKSH, value_BKSH, attn_mask=visible.mask, dropout_p=dropout
        )
        return out.reshape(query_BNTH.shape)
    return functional.scaled_dot_product_attention(
        query_BNTH,
        key_BKSH,
        value_BKSH,
        attn_mask=visible.mask,
        dropout_p=dropout,
        is_causal=visible.causal,
        enable_gqa=query_BNTH.shape[1] != kv_heads,
    )


def attention_weights(query_BNTH: Tensor, key_BKSH: Tensor, visible: Visible) -> Tensor:
    """Return how much each query looks at each key, (B, N, T, S), each row summing to 1; the softmax is in float32."""
    key_BNSH = key_BKSH.repeat_interleave(query_BNTH.shape[1] // key_BKSH.shape[1], dim=1)
    scores = query_BNTH @ key_BNSH.transpose(-1, -2) * query_BNTH.shape[-1] ** -0.5
    mask = visible.as_mask(query_BNTH.shape[2], key_BKSH.shape[2], query_BNTH.device)
    weights: Tensor = scores.masked_fill(~mask, -torch.inf).softmax(-1, dtype=torch.float32).to(query_BNTH.dtype)
    return weights


def eager(query_BNTH: Tensor, key_BKSH: Tensor, value_BKSH: Tensor, visible: Visible, dropout: float = 0.0) -> Tensor:
    """Return the attention of each query by the formula itself: the readable form the others are held to.

    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
    """
    value_BNSH = value_BKSH.repeat_interleave(query_BNTH.shape[1] // key_BKSH.shape[1], dim=1)
    weights_BNTS = functional.dropout(attention_weights(query_BNTH, key_BKSH, visible), dropout)
    out: Tensor = weights_BNTS @ value_BNSH
    return out


def recording(kept: list[Tensor]) -> Backend:
    """Return `eager` as a back end that also appends the weights of each call to ``kept``.

    Example:
        >>> kept = []
        >>> _ = recording(kept)(torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8), torch.ones(1, 2, 3, 8), Visible())
        >>> kept[0].shape
        torch.Size([1, 4, 3, 3])
    """

    def record(
        query_BNTH: Tensor, key_BKSH: Tensor, value_BKSH: Tensor, visible: Visible, dropout: float = 0.0
    ) -> Tensor:
        kept.append(attention_weights(query_BNTH, key_BKSH, visible))
        return eager(query_BNTH, key_BKSH, value_BKSH, visible, dropout)

    return record


@cache
def _flex_kernel(device_type: str) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Callable[..., Tensor] = flex_attention
    return torch.compile(kernel, dynamic=True) if device_type == "cuda" else kernel


def flex(query_BNTH: Tensor, key_BKSH: Tensor, value_BKSH: Tensor, visible: Visible, dropout: float = 0.0) -> Tensor:
    """Return the attention of each query through a kernel compiled for its mask (Dong et al. 2024, arXiv:2412.05496).

    On CUDA the first call compiles; on the CPU, where that takes minutes, the same program runs uncompiled.

    Raises:
        ValueError: If attention weights are to be dropped.
    """
    if dropout:
        raise ValueError(f"attention_dropout is {dropout}, which flex attention cannot apply; use 'sdpa' in training")
    mask = visible.as_mask(query_BNTH.shape[2], key_BKSH.shape[2], query_BNTH.device)
    mask = mask.expand(query_BNTH.shape[0], 1, -1, -1)

    def hide(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.where(mask[row, 0, query, key], score, -torch.inf)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return _flex_kernel(query_BNTH.device.type)(
            query_BNTH, key_BKSH, value_BKSH, score_mod=hide, enable_gqa=query_BNTH.shape[1] != key_BKSH.shape[1]
        )


def flash(query_BNTH: Tensor, key_BKSH: Tensor, value_BKSH: Tensor, visible: Visible, dropout: float = 0.0) -> Tensor:
    """Return the attention of each query through the flash-attn package (Dao 2023, arXiv:2307.08691).

    Raises:
        ValueError: If rows are padded or of unlike length, or weights are not 16 bits wide on CUDA.
    """
    from flash_attn import flash_attn_func

    if visible.mask is not None:
        raise ValueError("flash attention takes no mask; use 'sdpa' for padded rows, sliding windows or unlike lengths")
    if query_BNTH.device.type != "cuda" or query_BNTH.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"flash attention computes float16 and bfloat16 on CUDA, not {query_BNTH.dtype} on {query_BNTH.device}"
        )
    heads_last = (part.transpose(1, 2) for part in (query_BNTH, key_BKSH, value_BKSH))
    out: Tensor = flash_attn_func(*heads_last, dropout_p=dropout, causal=visible.causal)
    return out.transpose(1, 2)


_BACKENDS: dict[str, Backend] = {"sdpa": sdpa, "eager": eager, "flex": flex, "flash": flash}


def backend_named(name: str) -> Backend:
    """Return the back end of that name.

    Raises:
        ValueError: If there is none.
        ImportError: If it needs a package that is not installed.

    Example:
        >>> backend_named("eager") is eager
        True
    """
    if name not in _BACKENDS:
        raise ValueError(f"attention back end {name!r} is not one of {', '.join(_BACKENDS)}")
    if name == "flash" and importlib.util.find_spec("flash_attn") is None:
        raise ImportError("attention back end 'flash' needs the package flash-attn, which is not installed; use 'sdpa'")
    return _BACKENDS[name]
