"""Rotary position embedding: queries and keys are turned by an angle that grows with their position.

Shapes: ``B`` batch, ``T`` length, ``N`` heads, ``H`` head_dim, ``R`` rotated features of a head (H unless partial).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.layers.rope_scaling import LENGTH_DEPENDENT, inverse_frequencies

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each float32 (B, T, R / 2)."""


class RotaryEmbedding(nn.Module):
    """Turns positions into cosines and sines, once a forward pass; every layer uses the same ones."""

    inv_freq: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.length_dependent = config.rope["rope_type"] in LENGTH_DEPENDENT
        self.scale = 1.0
        self.register_buffer("inv_freq", torch.empty(0), persistent=False)
        self.reset_frequencies()

    def reset_frequencies(self) -> None:
        """Compute the inverse frequencies afresh, in float32, on the device the buffer is on."""
        self.inv_freq, self.scale = self._frequencies(1)

    def _frequencies(self, length: int) -> tuple[Tensor, float]:
        config = self.config
        frequencies, scale = inverse_frequencies(config.rope, config.head_size, config.max_position_embeddings, length)
        return torch.tensor(frequencies, dtype=torch.float32, device=self.inv_freq.device), scale

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryEmbedding:
        # model.to(torch.bfloat16) must not round the frequencies, and to_empty() must not lose them.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.reset_frequencies()
        return self

    def forward(self, positions_BT: Tensor, prompt_lengths: Sequence[int] = ()) -> Rotation:
        """Return the rotation of each position.

        In kinds that depend on the length of the text, that length is one more than the highest position of a row. If
        the length of the row's prompt is known, it is the length for every token of the prompt, and one more than its
        own position for each later token: as if the prompt were prefilled in one pass and later tokens one by one.
        Cached keys keep their rotation when the row grows, as in transformers.

        Args:
            positions_BT: int64; B may be 1 where all rows share positions.
            prompt_lengths: For each row the length of its prompt, 0 if not known; empty if no length is known.

        Returns:
            Cosines and sines, float32 (B, T, R / 2).
        """
        frequencies = self.inv_freq
        if self.length_dependent:
            lengths_BT = positions_BT.amax(-1, keepdim=True) + 1
            if any(prompt_lengths):
                prompts_B1 = torch.tensor(prompt_lengths, device=positions_BT.device)[:, None]
                lengths_BT = torch.where(prompts_B1 > 0, (positions_BT + 1).maximum(prompts_B1), lengths_BT)
            lengths, place_BT = torch.unique(lengths_BT, return_inverse=True)
            frequencies = torch.stack([self._frequencies(length)[0] for length in lengths.tolist()])[place_BT]
        angles = positions_BT[..., None].float() * frequencies
        return angles.cos() * self.scale, angles.sin() * self.scale


def apply_rope(x_BNTH: Tensor, rotation: Rotation) -> Tensor:
    """Return ``x`` with each head vector turned by its position's angle.

    Pairs are half-split (``i`` with ``i + R/2``), the layout of Hugging Face's LLaMA weights; other layouts are
    permuted once, on load. Features from ``R`` on are left as they are.

    Args:
        x_BNTH: Queries or keys.
        rotation: What `RotaryEmbedding` returned for their positions.

    Returns:
        Same shape and dtype as the input; the product is taken in float32.

    Raises:
        ValueError: If the rotation is wider than the heads.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34.

    Example:
        >>> quarter_turn = (torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
        >>> apply_rope(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), quarter_turn).flatten().tolist()
        [0.0, 1.0]
    """
    cos, sin = (part[:, None] for part in rotation)  # a head axis to broadcast over
    half = cos.shape[-1]
    if 2 * half > x_BNTH.shape[-1]:
        raise ValueError(f"the rotation turns {2 * half} features, but heads have {x_BNTH.shape[-1]}")
    x = x_BNTH.float()
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
    return turned.to(x_BNTH.dtype)


def positions_of(attention_mask: Tensor) -> Tensor:
    """Return each column's position, counting only the columns that hold tokens; padding gets 0.

    Example:
        >>> positions_of(torch.tensor([[0, 0, 1, 1, 1]])).tolist()
        [[0, 0, 0, 1, 2]]
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


class NoRotation(nn.Module):
    """Stands where `RotaryEmbedding` does in a model whose positions are told otherwise, or not at all."""

    def forward(self, positions_BT: Tensor, prompt_lengths: Sequence[int] = ()) -> Rotation:
        """Return cosines and sines of no features at all."""
        nothing = torch.zeros(*positions_BT.shape, 0, device=positions_BT.device)
        return nothing, nothing


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of each position, added to the token's embedding, for study.

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


def draw_rotation(config: LlamaConfig, path: str | Path, positions: int | None = None) -> None:
    """Write a picture of how far each pair of a head has turned at each position.

    Args:
        config: Whose rotation; its whole context by default.
        path: Of the image; the suffix chooses the format.
        positions: Draw this many.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    cos, _ = RotaryEmbedding(config)(torch.arange(positions or config.context_length)[None])
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(cos[0].T.numpy(), aspect="auto", origin="lower", cmap="RdBu", vmin=-1, vmax=1)
    axes.set(
        xlabel="position", ylabel="pair", title=f"cosine of the angle, {config.rope['rope_type']} rotary positions"
    )
    figure.colorbar(image, ax=axes)
    figure.savefig(path)
