"""Rotary position embedding (RoPE): the rotation of each pair of features by its angle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bpe_llama.draw.figures import as_array, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DIALS = 4
_HANDS = 8


def draw_rotation(inv_freq: Any, positions: int = 64) -> Figure:
    """Return a picture of RoPE: some pairs as clock faces, and below the cosine of all pairs at all positions.

    A pair of features is a point in the plane. At position ``p`` pair ``i`` is rotated by ``p * inv_freq[i]`` radians.
    A clock face shows where the pair (1, 0) is at positions 0 to 7, from dark to light.

    Args:
        inv_freq: (R/2,), the inverse frequency of each pair in radians per position: ``inv_freq`` of a model's
            ``rotary_emb``, or what `bpe_llama.model.layers.rope_scaling.inverse_frequencies` returns first.
        positions: The number of positions of the lower picture.

    Raises:
        ValueError: If there is no pair or no position.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.2.

    Example:
        >>> figure = draw_rotation([1.0, 0.1])
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['pair 0', 'pair 1']
    """
    frequencies = as_array(inv_freq)
    if frequencies.ndim != 1 or not frequencies.size:
        raise ValueError(f"inv_freq has shape {frequencies.shape}; expected one frequency a pair, (R/2,)")
    if positions < 1:
        raise ValueError(f"positions is {positions}; expected at least 1")
    pairs = np.unique(np.linspace(0, len(frequencies) - 1, min(_DIALS, len(frequencies))).round().astype(int))
    figure = new_figure(5.2, 4.0)
    grid = figure.add_gridspec(2, len(pairs), height_ratios=(1, 1.3))
    from matplotlib import colormaps

    circle = np.linspace(0, 2 * np.pi, 100)
    colours = colormaps["viridis"](np.linspace(0, 0.9, _HANDS))
    for column, pair in enumerate(pairs):
        dial = figure.add_subplot(grid[0, column])
        angles = np.arange(_HANDS) * frequencies[pair]
        dial.plot(np.cos(circle), np.sin(circle), color="0.7", linewidth=1)
        for angle, colour in reversed(list(zip(angles, colours, strict=True))):
            dial.plot([0, np.cos(angle)], [0, np.sin(angle)], color=colour, linewidth=2.5, solid_capstyle="round")
        dial.set(aspect="equal", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), xticks=[], yticks=[], title=f"pair {pair}")
        dial.set_xlabel(f"{_rounded(np.degrees(frequencies[pair]))}°\na position")
        dial.spines[:].set_visible(False)
    axes = figure.add_subplot(grid[1, :])
    cosines = np.cos(frequencies[:, None] * np.arange(positions))
    image = axes.imshow(cosines, aspect="auto", cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")
    axes.set(xlabel="position", ylabel="pair")
    if len(frequencies) <= _DIALS:
        axes.set_yticks(range(len(frequencies)))
    figure.colorbar(image, ax=axes, label="cosine of the angle", ticks=[-1, 0, 1])
    return figure


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
