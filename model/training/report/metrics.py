"""The metrics of a run as JSON lines, and the plot of its losses."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path

from bpe_llama._core import shown
from bpe_llama._files import append_bytes, atomic_write, read_text, write_text
from bpe_llama.model.training.callbacks import Callback, Metrics, Run, TrainResult

_NUMBERS = ("step", "tokens", "loss", "grad_norm", "eval_loss")
"""What this module and a resumed run compute with."""


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 1 << 53)


def read_metrics(path: str | os.PathLike[str]) -> list[Metrics]:
    """Return the lines of a `metrics.jsonl`; a last line that a killed process left incomplete is dropped.

    Raises:
        ValueError: If another line is no JSON object with a step, or has text for a number; the message has its number.
    """
    path = Path(path)
    metrics: list[Metrics] = []
    if not path.exists():
        return metrics
    lines = read_text(path, newline="").split("\n")
    for number, line in enumerate(lines[:-1], start=1):  # a complete line ends with a line break
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error}); mend or remove it") from None
        if not isinstance(values, dict) or "step" not in values:
            raise ValueError(f"{path}: line {number} is {line:.80}; expected a JSON object with a step")
        if wrong := [key for key in _NUMBERS if key in values and not _is_number(values[key])]:
            raise ValueError(f"{path}: line {number}: {wrong[0]} is {shown(values[wrong[0]])}; expected a number")
        metrics.append(values)
    return metrics


class MetricsFile(Callback):
    """Appends a line of JSON to `path` at each log interval and evaluation.

    Lines after `step`, which a killed run wrote after its checkpoint, are dropped first.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._lines = [line for line in read_metrics(path) if line["step"] <= step] if step else []
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self._lines))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115, closed by close()

    def last(self, key: str, step: int | None = None, default: float = math.nan) -> float:
        """Return the last value of `key` that the file held at first, or that of `step`; else `default`."""
        found = [line[key] for line in self._lines if key in line and step in (None, line["step"])]
        return found[-1] if found else default

    def write(self, **values: float | str) -> None:
        """Append one line; an `OSError` names the file, for example on a full disk."""
        append_bytes(self._file, (json.dumps(values, ensure_ascii=False) + "\n").encode())

    def on_log(self, run: Run, metrics: Metrics) -> None:
        """Append the metrics of an interval or an evaluation."""
        self.write(**metrics)

    on_eval = on_log

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def plot_loss(
    metrics: list[Metrics], path: str | os.PathLike[str], title: str = "Training loss", unit: str = "token"
) -> None:
    """Plot training and held-out loss over tokens into a PNG, SVG or PDF, by the suffix of `path`.

    Args:
        metrics: Lines of `metrics.jsonl`: `loss` or `eval_loss` at `tokens`.
        path: File to write; replaced atomically.
        title: Title of the plot.
        unit: What the losses are per.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError("a plot needs matplotlib: pip install 'bpe_llama[plot]'") from error

    path = Path(path)
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held-out", "o--")):
        points = [(line["tokens"], line[key]) for line in metrics if key in line and "tokens" in line]
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
        """Draw the plot, unless the run ended before its first metrics; warn if it cannot be drawn: the run counts."""
        metrics = read_metrics(run.out / "metrics.jsonl")
        if any("loss" in line or "eval_loss" in line for line in metrics):
            try:
                plot_loss(metrics, run.out / "loss.png", unit=self._unit)
            except (ImportError, OSError) as error:
                warnings.warn(f"{run.out / 'loss.png'} is not drawn: {error}", stacklevel=2)
