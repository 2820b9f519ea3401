"""The plot of training and held-out loss."""

from __future__ import annotations

import os
from pathlib import Path

from bpe_llama._files import atomic_write
from bpe_llama.model.training.callbacks import Callback, Metrics, Run, TrainResult
from bpe_llama.model.training.report.metrics import read_metrics


def plot_loss(
    metrics: list[Metrics], path: str | os.PathLike[str], title: str = "Training loss", unit: str = "token"
) -> None:
    """Plot training and held-out loss over tokens into a PNG, SVG or PDF, by the suffix of `path`.

    Args:
        metrics: Lines of `metrics.jsonl`: `loss` or `eval_loss` at `tokens`.
        path: File to write; replaced atomically.
        title: Title of the plot.
        unit: What the losses are per.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held-out", "o--")):
        points = [(line["tokens"], line[key]) for line in metrics if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.2)
    axes.set(xlabel="tokens", ylabel=f"loss (nats per {unit})", title=title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)


class LossPlot(Callback):
    """Draws `loss.png` from `metrics.jsonl` at the end of a run; its losses are per `unit`."""

    def __init__(self, unit: str = "token") -> None:
        self._unit = unit

    def on_end(self, run: Run, result: TrainResult) -> None:
        """Draw the plot, unless the run ended before its first metrics."""
        metrics = read_metrics(run.out / "metrics.jsonl")
        if any("loss" in line or "eval_loss" in line for line in metrics):
            plot_loss(metrics, run.out / "loss.png", unit=self._unit)
