"""Attention weights as heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bpe_llama.draw.figures import as_array, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 2


def draw_attention(
    weights: Any, tokens: Sequence[str], keys: Sequence[str] | None = None, titles: Sequence[str] | None = None
) -> Figure:
    """Return a picture of attention weights: a row a query, a column a key, a panel a head.

    All panels have one colour scale, from 0 to the largest weight.

    Args:
        weights: (T, S) of one head or (N, T, S) of several, at least 0.
        tokens: The text of each query.
        keys: The text of each key, by default that of the queries.
        titles: The title of each panel, by default ``head 0``, ``head 1`` ...

    Raises:
        ValueError: If the shapes do not fit, or a weight is negative or not finite.

    Example:
        >>> figure = draw_attention([[1.0, 0.0], [0.3, 0.7]], ["Hello", " world"])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['Hello', '·world']
    """
    heads = as_array(weights)
    heads = heads[None] if heads.ndim == 2 else heads
    keys = tokens if keys is None else keys
    if heads.ndim != 3 or not heads.size or heads.shape[1:] != (len(tokens), len(keys)):
        raise ValueError(
            f"weights have shape {np.shape(weights)}; expected ({len(tokens)}, {len(keys)}), or that of each head: "
            f"there are {len(tokens)} tokens and {len(keys)} keys"
        )
    if not np.isfinite(heads).all() or heads.min() < 0:
        raise ValueError("weights must be finite and at least 0")
    titles = ([f"head {head}" for head in range(len(heads))] if len(heads) > 1 else [""]) if titles is None else titles
    if len(titles) != len(heads):
        raise ValueError(f"there are {len(titles)} titles and {len(heads)} heads")

    columns = min(_COLUMNS, len(heads))
    rows = math.ceil(len(heads) / columns)
    side = max(0.2 * max(heads.shape[1:]), 1.5)  # of a panel, in inches: room for a label a token
    figure = new_figure(columns * side + (2.0 if columns == 1 else 1.2), rows * side + (1.2 if columns == 1 else 1.8))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for panel in panels.flat[len(heads) :]:
        panel.remove()
    for head, title, panel in zip(heads, titles, panels.flat, strict=False):
        image = panel.imshow(head, cmap="viridis", vmin=0, vmax=float(heads.max()), aspect="equal")
        panel.set_title(title, fontsize=10)
        panel.set_xticks(range(len(keys)), list(map(_shown, keys)), rotation=90)
        panel.set_yticks(range(len(tokens)), list(map(_shown, tokens)))
        panel.tick_params(length=0)
        panel.label_outer()
    for panel in panels[:, 0]:
        panel.set_ylabel("query")
    for panel in panels[-1]:
        panel.set_xlabel("key")
    place = "right" if columns == 1 else "top"
    figure.colorbar(image, ax=list(panels.flat[: len(heads)]), label="attention weight", shrink=0.8, location=place)
    return figure


def _shown(token: str) -> str:
    return token.replace(" ", "·").replace("\n", "↵").replace("$", r"\$")
