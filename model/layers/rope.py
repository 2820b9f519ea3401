"""Rotary position embedding (RoPE): queries and keys are rotated by angles proportional to their positions.

Shapes: ``B`` batch, ``T`` length, ``N`` heads, ``H`` head_dim, ``R`` rotated features of a head (H unless partial),
``D`` hidden_size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bpe_llama.model.cache.kv_cache import CacheColumns
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.layers import fused
from bpe_llama.model.layers.documents import Documents
from bpe_llama.model.layers.rope_scaling import LENGTH_DEPENDENT, inverse_frequencies

Rotation = tuple[Tensor, Tensor]
"""The cosines and sines of the angles, each float32 (B, T, R / 2)."""


class RotaryEmbedding(nn.Module):
    """Cosines and sines of positions, computed once per forward pass for all layers.

    Args:
        config: Of the model.
        rope: The RoPE parameters, by default the config's.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.2.2.
    """

    inv_freq: Tensor

    def __init__(self, config: LlamaConfig, rope: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config, self.rope = config, rope or config.rope
        self.length_dependent = self.rope["rope_type"] in LENGTH_DEPENDENT
        self.scale = 1.0
        self.register_buffer("inv_freq", torch.empty(0), persistent=False)
        self.reset_frequencies()

    def reset_frequencies(self) -> None:
        """Recompute the inverse frequencies in float32 on the buffer's device."""
        self.inv_freq, self.scale = self._frequencies(1)

    def _frequencies(self, length: int) -> tuple[Tensor, float]:
        config = self.config
        frequencies, scale = inverse_frequencies(self.rope, config.head_size, config.max_position_embeddings, length)
        return torch.tensor(frequencies, dtype=torch.float32, device=self.inv_freq.device), scale

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryEmbedding:
        # model.to(torch.bfloat16) must not round the frequencies, and to_empty() must not drop them.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.reset_frequencies()
        return self

    def forward(
        self, positions_BT: Tensor, prompt_lengths: Sequence[int] = (), documents: Documents | None = None
    ) -> Rotation:
        """Return the rotation of each position.

        Dynamic NTK and LongRoPE depend on the sequence length. It is one more than the highest position of a row, or
        of a packed document. If
        the row's prompt length is known, all tokens of the prompt have that length, and each later token has one more
        than its own position: the rotation does not depend on prefill chunks. Cached keys keep their rotation when
        the sequence grows, as in transformers.

        Args:
            positions_BT: int64; B may be 1 if all rows have the same positions.
            prompt_lengths: The prompt length of each row, 0 if unknown; empty if none is known.
            documents: The documents packed into each row.

        Returns:
            Cosines and sines, float32 (B, T, R / 2).
        """
        frequencies = self.inv_freq
        if self.length_dependent:
            last_BT = documents.maximum(positions_BT) if documents else positions_BT.amax(-1, keepdim=True)
            lengths_BT = last_BT + 1
            if any(prompt_lengths):
                prompts_B1 = torch.tensor(prompt_lengths, device=positions_BT.device)[:, None]
                lengths_BT = torch.where(prompts_B1 > 0, (positions_BT + 1).maximum(prompts_B1), lengths_BT)
            lengths, index_BT = torch.unique(lengths_BT, return_inverse=True)
            frequencies = torch.stack([self._frequencies(length)[0] for length in lengths.tolist()])[index_BT]
        angles = positions_BT[..., None].float() * frequencies
        return angles.cos() * self.scale, angles.sin() * self.scale


def apply_rope(x_BNTH: Tensor, rotation: Rotation) -> Tensor:
    """Return ``x`` with rotary position embedding applied to each head vector.

    Pairs are half-split (``i`` with ``i + R/2``), the layout of Hugging Face LLaMA weights; other layouts are permuted
    on load. Features from ``R`` on are not rotated.

    Args:
        x_BNTH: Queries or keys.
        rotation: Cosines and sines of their positions, from `RotaryEmbedding`.

    Returns:
        Same shape and dtype as the input; computed in float32.

    Raises:
        ValueError: If R exceeds H.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34.

    Example:
        >>> by_90_degrees = (torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
        >>> apply_rope(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), by_90_degrees).flatten().tolist()
        [0.0, 1.0]
    """
    cos, sin = (part[:, None] for part in rotation)  # broadcast over heads
    half = cos.shape[-1]
    if 2 * half > x_BNTH.shape[-1]:
        raise ValueError(f"the rotation has {2 * half} features, but heads have {x_BNTH.shape[-1]}")
    if fused.is_used(x_BNTH) and half:
        return fused.rotate(x_BNTH, *rotation)
    x, rest = x_BNTH.float(), None
    if 2 * half < x.shape[-1]:
        x, rest = x[..., : 2 * half], x[..., 2 * half :]
    # Whole rows: the backward pass of a slice fills a tensor of its own.
    rotated = x * torch.cat((cos, cos), dim=-1) + x.roll(half, -1) * torch.cat((-sin, sin), dim=-1)
    if rest is not None:
        rotated = torch.cat((rotated, rest), dim=-1)
    return rotated.to(x_BNTH.dtype)


def apply_interleaved_rope(x_BNTH: Tensor, rotation: Rotation) -> Tensor:
    """Return what `apply_rope` does if the pairs are neighbours: feature ``2 i`` with ``2 i + 1``.

    Example:
        >>> x, by_90_degrees = torch.tensor([1.0, 0.0, 0.0, 2.0]), (torch.zeros(1, 1, 2), torch.ones(1, 1, 2))
        >>> apply_interleaved_rope(x.view(1, 1, 1, 4), by_90_degrees).flatten().tolist()
        [0.0, 1.0, -2.0, 0.0]
    """
    cos, sin = (part[:, None] for part in rotation)  # broadcast over heads
    width = 2 * cos.shape[-1]
    if width > x_BNTH.shape[-1]:
        raise ValueError(f"the rotation has {width} features, but heads have {x_BNTH.shape[-1]}")
    x = x_BNTH.float()
    first, second, rest = x[..., 0:width:2], x[..., 1:width:2], x[..., width:]
    rotated = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
    return torch.cat((rotated, rest), dim=-1).to(x_BNTH.dtype)


def rotations_of_layers(
    config: LlamaConfig, whole: Rotation, local: Rotation, positions_BT: Tensor | None = None
) -> list[Rotation]:
    """Return the rotation of each layer: ``local`` if it has a sliding window; by 0 if it is not rotated.

    Families in which layers without RoPE depend on positions read them.

    Example:
        >>> cos, sin = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        >>> [part[0].item() for part in rotations_of_layers(LlamaConfig(num_hidden_layers=2), (cos, sin), (sin, cos))]
        [0.0, 0.0]
    """
    rotated, none = config.rotated_layers, whole
    if not all(rotated):
        none = torch.ones_like(whole[0]), torch.zeros_like(whole[1])
        if config.family.unrotated is not None and positions_BT is not None:
            none = config.family.unrotated(config, none, positions_BT)
    return [
        (whole if window is None else local) if rotates else none
        for rotates, window in zip(rotated, config.windows, strict=True)
    ]


def positions_of(attention_mask: Tensor) -> Tensor:
    """Return the position of each column, int64 (B, S): the tokens before it, padding not counted; padding gets 0.

    Example:
        >>> positions_of(torch.tensor([[0, 0, 1, 1, 1]])).tolist()
        [[0, 0, 0, 1, 2]]
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def new_positions(
    length: int, attention_mask: Tensor | None, columns: CacheColumns | None, device: torch.device
) -> Tensor:
    """Return the positions of a pass's tokens, (B or 1, T), from the mask or the cache; without them 0, 1, 2 ...

    Example:
        >>> new_positions(3, None, None, torch.device("cpu")).tolist()
        [[0, 1, 2]]
    """
    if attention_mask is not None:
        return positions_of(attention_mask)[:, -length:]
    if columns is not None and columns.positions is not None:
        return columns.positions
    end = columns.end if columns else length
    return torch.arange(end - length, end, device=device)[None]


class NoRotation(nn.Module):
    """Replaces `RotaryEmbedding` in a model without rotary positions."""

    length_dependent = False

    def forward(
        self, positions_BT: Tensor, prompt_lengths: Sequence[int] = (), documents: Documents | None = None
    ) -> Rotation:
        """Return cosines and sines of zero features, float32 (B, T, 0)."""
        empty = torch.zeros(*positions_BT.shape, 0, device=positions_BT.device)
        return empty, empty


class SinusoidalEmbedding(nn.Module):
    """Sinusoidal position embeddings, which are added to the token embeddings; no pretrained LLaMA has them.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, positions_BT: Tensor) -> Tensor:
        """Return the embedding of each position, float32 (B, T, D): sines in even features, cosines in odd ones."""
        pair = torch.arange(0, self.width, 2, device=positions_BT.device)
        angles = positions_BT[..., None].float() * 10_000.0 ** (-pair / self.width)
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., : self.width]
