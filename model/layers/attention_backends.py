"""Scaled dot-product attention by several backends, which return the same result up to rounding.

Shapes: ``B`` batch, ``T`` query length, ``S`` key length, ``N`` heads, ``K`` KV heads, ``G`` query heads per KV head
(N / K), ``H`` head_dim.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from bpe_llama._core import shown
from bpe_llama.model.layers.documents import Documents
from bpe_llama.model.layers.matmul import products
from bpe_llama.model.windows import is_near, most_keys


@dataclass(frozen=True)
class Visible:
    """The keys that each query attends to: its own and earlier ones (``causal``), those in ``mask``, or all.

    Attributes:
        causal: Query ``t`` of T attends to the first ``S - T + t + 1`` keys.
        mask: bool, (B or 1, 1, T, S), true if the query attends to the key.
        documents: Each query attends to its own and earlier keys of its document; T is S.
    """

    causal: bool = False
    mask: Tensor | None = None
    documents: Documents | None = None

    def as_mask(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """Return the mask, bool (B or 1, 1, T, S)."""
        if self.documents is not None:
            return self.documents.mask
        if self.mask is not None:
            return self.mask
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
        return mask.tril(keys - queries) if self.causal else mask


class Backend(Protocol):
    """Computes attention."""

    def __call__(
        self,
        query_BNTH: Tensor,
        key_BKSH: Tensor,
        value_BKSH: Tensor,
        visible: Visible,
        dropout: float = 0.0,
        softcap: float | None = None,
    ) -> Tensor:
        """Return the attention output, (B, N, T, H).

        Args:
            query_BNTH: Queries.
            key_BKSH: Keys.
            value_BKSH: Values.
            visible: The keys that each query attends to.
            dropout: The probability with which an attention weight is dropped.
            softcap: The bound of scores: each is ``softcap * tanh(score / softcap)``; None does not bound them.
        """


def sdpa(
    query_BNTH: Tensor,
    key_BKSH: Tensor,
    value_BKSH: Tensor,
    visible: Visible,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """Return the attention output, (B, N, T, H), of `torch.nn.functional.scaled_dot_product_attention`.

    Keys and values are not repeated for the query heads that share them. At T = 1 the ``G`` query heads of a KV head
    become ``G`` queries of one head, so that each key is read once. Packed documents are computed one by one on the
    CPU, and by FlexAttention on CUDA. Short training sequences of bfloat16 on a CPU are computed by `short_bfloat16`;
    a CPU whose products of bfloat16 are slower than those of float32 computes in float32, and rounds the result.
    Torch's function has no ``softcap``: with one, `soft_capped` computes instead.

    Example:
        >>> query, key = torch.zeros(1, 4, 1, 8), torch.zeros(1, 2, 5, 8)
        >>> sdpa(query, key, torch.ones(1, 2, 5, 8), Visible()).shape
        torch.Size([1, 4, 1, 8])
    """
    if visible.documents is not None:
        return _sdpa_of_documents(query_BNTH, key_BKSH, value_BKSH, visible.documents, dropout, softcap)
    in_bfloat16 = query_BNTH.requires_grad and _is_bfloat16(query_BNTH, key_BKSH)
    if in_bfloat16 and products.bfloat16_is_slower():
        with torch.autocast("cpu", enabled=False):
            query, key, value = (part.float() for part in (query_BNTH, key_BKSH, value_BKSH))
            return sdpa(query, key, value, visible, dropout, softcap).bfloat16()
    if softcap is not None:
        return soft_capped(query_BNTH, key_BKSH, value_BKSH, visible, dropout, softcap)
    kv_heads, length = key_BKSH.shape[1], query_BNTH.shape[2]
    if in_bfloat16 and not dropout and 1 < length <= key_BKSH.shape[2] <= SHORT:
        return short_bfloat16(query_BNTH, key_BKSH, value_BKSH, visible)
    mask = visible.mask
    if visible.causal and 1 < length < key_BKSH.shape[2]:  # torch's own causal flag takes the first key for the first
        mask = _lower_right(query_BNTH, value_BKSH, visible)
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
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=visible.causal and mask is None,
        enable_gqa=query_BNTH.shape[1] != kv_heads,
    )


def _lower_right(query_BNTH: Tensor, value_BKSH: Tensor, visible: Visible) -> Tensor:
    """Return the causal mask whose last query sees the last key: on CUDA one that flash attention needs not read."""
    (queries, width), keys = query_BNTH.shape[2:], value_BKSH.shape[2]
    narrow = query_BNTH.dtype in (torch.float16, torch.bfloat16) and width == value_BKSH.shape[3] <= 256
    if query_BNTH.is_cuda and narrow:  # what flash attention takes
        from torch.nn.attention.bias import causal_lower_right

        return causal_lower_right(queries, keys)
    return visible.as_mask(queries, keys, query_BNTH.device)


def _sdpa_of_documents(
    query_BNTH: Tensor,
    key_BKSH: Tensor,
    value_BKSH: Tensor,
    documents: Documents,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """Return the attention output within documents, (B, N, T, H).

    On the CPU one causal call a document computes no score that a mask would hide. 2,048 tokens in rows of 256 to 2,048
    took 0.1 to 1.3 times the time of causal attention over whole rows, on one thread; a mask took 0.9 to 1.8 times.
    """
    if query_BNTH.is_cuda and not dropout:
        return flex(query_BNTH, key_BKSH, value_BKSH, Visible(documents=documents), softcap=softcap)
    if query_BNTH.device.type != "cpu" or torch.compiler.is_compiling():  # lengths on the host would be constants
        return sdpa(query_BNTH, key_BKSH, value_BKSH, Visible(mask=documents.mask), dropout, softcap)
    band_LL, longest = None, max(map(max, documents.lengths))
    if documents.window is not None and most_keys(documents.window) < longest:
        place_L = torch.arange(longest)
        band_LL = is_near(documents.window, place_L[:, None], place_L).tril()
    outputs = []
    for row, lengths in enumerate(documents.lengths):
        parts = (torch.split(whole[row : row + 1], lengths, dim=2) for whole in (query_BNTH, key_BKSH, value_BKSH))
        for length, query, key, value in zip(lengths, *parts, strict=True):
            visible = Visible(causal=True) if band_LL is None else Visible(mask=band_LL[None, None, :length, :length])
            outputs.append(sdpa(query, key, value, visible, dropout, softcap))
    batch, heads, length, _ = query_BNTH.shape
    return torch.cat(outputs, dim=2).view(heads, batch, length, -1).transpose(0, 1)


SHORT = 256
"""The longest sequence whose attention weights fit beside the other activations of a layer."""


def _is_bfloat16(query_BNTH: Tensor, key_BKSH: Tensor) -> bool:
    """Return whether both are bfloat16 on a CPU; under autocast a cache may have keys of float32."""
    if query_BNTH.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return query_BNTH.dtype == key_BKSH.dtype == torch.bfloat16


def short_bfloat16(query_BNTH: Tensor, key_BKSH: Tensor, value_BKSH: Tensor, visible: Visible) -> Tensor:
    """Return the attention output, (B, N, T, H), by the definition; the ``G`` query heads of a KV head are G T queries.

    Scores are rounded to bfloat16, as by transformers' eager attention; the softmax is computed in float32.

    Cost: memory for the attention weights. With 128 keys, forward and backward take a fifth of the time of torch's
    kernel, which multiplies bfloat16 in small blocks.
    """
    (batch, heads, length, width), (kv_heads, keys) = query_BNTH.shape, key_BKSH.shape[1:3]
    key, value = key_BKSH.reshape(-1, keys, width), value_BKSH.reshape(-1, keys, value_BKSH.shape[3])
    seen = visible.as_mask(length, keys, query_BNTH.device)
    hidden = torch.zeros(seen.shape, dtype=query_BNTH.dtype).masked_fill_(~seen, -torch.inf)
    hidden = hidden.expand(-1, heads // kv_heads, -1, -1).reshape(len(hidden), -1, keys)
    if len(hidden) > 1:
        hidden = hidden.repeat_interleave(kv_heads, 0)
    with torch.autocast("cpu", enabled=False):  # it would return the softmax in float32
        query = query_BNTH.reshape(len(key), -1, width)
        scores = torch.baddbmm(hidden, query, key.mT, alpha=width**-0.5)
        return (scores.softmax(-1) @ value).view(batch, heads, length, -1)


_BLOCK = 1 << 26
"""The attention scores that `soft_capped` computes at a time."""


def soft_capped(
    query_BNTH: Tensor, key_BKSH: Tensor, value_BKSH: Tensor, visible: Visible, dropout: float, softcap: float
) -> Tensor:
    """Return the attention output of capped scores, (B, N, T, H): `eager` without repeated keys and values.

    Cost: memory for the attention weights of a block of queries in evaluation, of all queries in training.
    """
    (batch, heads, length, width), (kv_heads, keys) = query_BNTH.shape, key_BKSH.shape[1:3]
    hidden = ~visible.as_mask(length, keys, query_BNTH.device)[:, :, None]
    query_BKGTH = query_BNTH.reshape(batch, kv_heads, heads // kv_heads, length, width)
    whole = (torch.is_grad_enabled() and query_BNTH.requires_grad) or torch.compiler.is_compiling()
    block, outputs = length if whole else max(1, _BLOCK // (batch * heads * keys)), []
    for start in range(0, length, block):
        part, rows = query_BKGTH[:, :, :, start : start + block], slice(start, start + block)
        scores = part.flatten(2, 3) @ key_BKSH.mT * width**-0.5
        scores = _capped(scores, softcap).view(*part.shape[:4], keys).masked_fill(hidden[..., rows, :], -torch.inf)
        weights = scores.softmax(-1, dtype=torch.float32).to(query_BNTH.dtype)
        weights = functional.dropout(weights, dropout)
        outputs.append((weights.flatten(2, 3) @ value_BKSH).view(*part.shape[:4], -1))
    return torch.cat(outputs, dim=3).flatten(1, 2)


def _capped(scores: Tensor, softcap: float | Tensor | None) -> Tensor:
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def attention_weights(query_BNTH: Tensor, key_BKSH: Tensor, visible: Visible, softcap: float | None = None) -> Tensor:
    """Return the attention weights, (B, N, T, S), whose rows sum to 1; the softmax is computed in float32."""
    key_BNSH = key_BKSH.repeat_interleave(query_BNTH.shape[1] // key_BKSH.shape[1], dim=1)
    scores = _capped(query_BNTH @ key_BNSH.transpose(-1, -2) * query_BNTH.shape[-1] ** -0.5, softcap)
    mask = visible.as_mask(query_BNTH.shape[2], key_BKSH.shape[2], query_BNTH.device)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1, dtype=torch.float32).to(query_BNTH.dtype)


def eager(
    query_BNTH: Tensor,
    key_BKSH: Tensor,
    value_BKSH: Tensor,
    visible: Visible,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """Return the attention output, (B, N, T, H), by the definition: the oracle of the other backends.

    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Gemma Team 2024, arXiv:2408.00118, section 2 (soft cap).
    """
    value_BNSH = value_BKSH.repeat_interleave(query_BNTH.shape[1] // key_BKSH.shape[1], dim=1)
    weights_BNTS = functional.dropout(attention_weights(query_BNTH, key_BKSH, visible, softcap), dropout)
    return weights_BNTS @ value_BNSH


def recording(recorded: list[Tensor]) -> Backend:
    """Return a backend that computes `eager` and appends the attention weights of each call to ``recorded``.

    Example:
        >>> recorded = []
        >>> _ = recording(recorded)(torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8), torch.ones(1, 2, 3, 8), Visible())
        >>> recorded[0].shape
        torch.Size([1, 4, 3, 3])
    """

    def record(
        query_BNTH: Tensor,
        key_BKSH: Tensor,
        value_BKSH: Tensor,
        visible: Visible,
        dropout: float = 0.0,
        softcap: float | None = None,
    ) -> Tensor:
        recorded.append(attention_weights(query_BNTH, key_BKSH, visible, softcap))
        return eager(query_BNTH, key_BKSH, value_BKSH, visible, dropout, softcap)

    return record


@cache
def _compiled(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(kernel, dynamic=True)


def _flex_kernel(*tensors: Tensor, **options: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Callable[..., Tensor] = flex_attention
    if torch.compiler.is_compiling():
        return kernel(*tensors, **options)
    if tensors[0].is_cuda:
        return _compiled(kernel)(*tensors, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return kernel(*tensors, **options)


def flex(
    query_BNTH: Tensor,
    key_BKSH: Tensor,
    value_BKSH: Tensor,
    visible: Visible,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """Return the attention output, (B, N, T, H), of torch's FlexAttention.

    Cost: the first call on CUDA compiles a kernel. On the CPU, where that takes minutes, it runs uncompiled.

    Raises:
        ValueError: If ``dropout`` is not 0.

    Source: Dong et al. 2024, arXiv:2412.05496.
    """
    if dropout:
        raise ValueError(f"attention_dropout is {dropout}, which flex attention cannot apply; use 'sdpa' in training")
    heads = (query_BNTH, key_BKSH, value_BKSH)
    several = query_BNTH.shape[1] != key_BKSH.shape[1]
    # Dynamo traces a second value of a float as a symbol, which flex_attention refuses.
    bound = None if softcap is None else torch.full((), softcap, dtype=torch.float32, device=query_BNTH.device)

    def cap(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return _capped(score, bound)

    if visible.documents is not None:
        changed = {} if softcap is None else {"score_mod": cap}
        return _flex_kernel(*heads, block_mask=visible.documents.blocks, enable_gqa=several, **changed)
    mask = visible.as_mask(query_BNTH.shape[2], key_BKSH.shape[2], query_BNTH.device)
    mask = mask.expand(query_BNTH.shape[0], 1, -1, -1)

    def hide(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.where(mask[row, 0, query, key], _capped(score, bound), -torch.inf)

    return _flex_kernel(*heads, score_mod=hide, enable_gqa=several)


def flash(
    query_BNTH: Tensor,
    key_BKSH: Tensor,
    value_BKSH: Tensor,
    visible: Visible,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """Return the attention output, (B, N, T, H), of the flash-attn package.

    Raises:
        ValueError: If rows are padded or differ in length, or the queries are not float16 or bfloat16 on CUDA.

    Source: Dao 2023, arXiv:2307.08691.
    """
    from flash_attn import flash_attn_func

    if visible.mask is not None or visible.documents is not None:
        raise ValueError(
            "flash attention takes no mask; use 'sdpa' for padding, sliding windows, unequal lengths, documents"
        )
    if query_BNTH.device.type != "cuda" or query_BNTH.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"flash attention computes float16 and bfloat16 on CUDA, not {query_BNTH.dtype} on {query_BNTH.device}"
        )
    heads_last = (part.transpose(1, 2) for part in (query_BNTH, key_BKSH, value_BKSH))
    out: Tensor = flash_attn_func(*heads_last, dropout_p=dropout, causal=visible.causal, softcap=softcap or 0.0)
    return out.transpose(1, 2)


_BACKENDS: dict[str, Backend] = {"sdpa": sdpa, "eager": eager, "flex": flex, "flash": flash}


def backend_named(name: str) -> Backend:
    """Return the attention backend with this name.

    Raises:
        ValueError: If there is no such backend.
        ImportError: If it needs a package that is not installed.

    Example:
        >>> backend_named("eager") is eager
        True
    """
    if name not in _BACKENDS:
        raise ValueError(f"attention backend {shown(name)} is not one of {', '.join(_BACKENDS)}")
    if name == "flash" and importlib.util.find_spec("flash_attn") is None:
        raise ImportError("attention backend 'flash' needs the package flash-attn, which is not installed; use 'sdpa'")
    return _BACKENDS[name]
