"""How many tokens each expert of a mixture receives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bpe_llama.draw.figures import as_array, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_expert_load(
    load: npt.ArrayLike | Mapping[str, npt.ArrayLike], *, every: int = 1, axis: str = "step"
) -> Figure:
    """Return a heat map of the load of each expert: over the steps of a run, or over the layers of a model.

    The load is the share of the tokens that an expert receives, times the number of experts: 1 is an equal share, 0 an
    expert without tokens. The colours end at 2, so figures of several runs can be compared.

    Shapes: ``S`` steps or layers, ``E`` experts.

    Args:
        load: Tokens, or shares of tokens, of each expert, (S, E): an array or a tensor. Or several of them by title,
            which are drawn one below the other.
        every: The steps between two rows.
        axis: What the rows are: ``"step"``, ``"layer"`` ...

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If an array has another shape, a negative number, or a row without tokens.

    Example:
        >>> figure = draw_expert_load([[3, 1, 0, 4], [2, 2, 2, 2]])
        >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
        ('step', 'expert')
    """
    panels = load if isinstance(load, Mapping) else {"": load}
    loads = {title: _load(rows, title) for title, rows in panels.items()}
    figure = new_figure(5.2, 0.6 + 2.0 * len(loads))
    all_axes = figure.subplots(len(loads), sharex=True, squeeze=False)[:, 0]
    for axes, (title, load_SE) in zip(all_axes, loads.items(), strict=True):
        steps, experts = load_SE.shape
        extent = (-0.5 * every, (steps - 0.5) * every, experts - 0.5, -0.5)
        image = axes.imshow(
            load_SE.T, aspect="auto", vmin=0, vmax=2, cmap="viridis", extent=extent, interpolation="nearest"
        )
        axes.set_ylabel("expert")
        axes.set_title(title)
        axes.set_yticks(range(0, experts, max(1, experts // 8)))
    all_axes[-1].set_xlabel(axis)
    bar = figure.colorbar(image, ax=list(all_axes), extend="max", ticks=[0, 0.5, 1, 1.5, 2])
    bar.set_label("load (1: an equal share)")
    return figure


def _load(rows: npt.ArrayLike, title: str) -> npt.NDArray[np.float64]:
    """Return the load of each expert, (S, E)."""
    name = f"load of {title!r}" if title else "load"
    found = as_array(rows)
    if found.ndim != 2 or not found.size:
        raise ValueError(f"{name} has shape {found.shape}; expected (steps, experts)")
    if not (found >= 0).all() or not (totals := found.sum(1, keepdims=True)).all():
        raise ValueError(f"{name} has a negative number or a row without tokens; expected counts of tokens")
    return found / totals * found.shape[1]
