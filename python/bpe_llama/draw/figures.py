"""What all pictures share: a new figure, its colours, and arrays of what is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#D9D9D9"
"""From Okabe and Ito's palette, which is distinct to colour-blind readers, and a background."""


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
        raise ImportError("bpe_llama.draw needs matplotlib: pip install 'bpe_llama[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def as_array(values: Any) -> npt.NDArray[np.float64]:
    """Return numbers as float64: an array, a list, or a tensor of any device and floating-point dtype.

    >>> as_array([1, 2]).tolist()
    [1.0, 2.0]
    """
    if hasattr(values, "detach"):  # a tensor; torch is not imported for it
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
