"""What all pictures share: a new figure, and colours that are distinct to colour-blind readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#D9D9D9"
"""From Okabe and Ito's palette, and a background."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, which belongs to no window and needs no closing.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> new_figure(3, 2).get_size_inches().tolist()
        [3.0, 2.0]
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError("bpe_llama.draw needs matplotlib: pip install 'bpe-llama[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")
