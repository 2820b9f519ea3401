"""Reports of a run: metrics as JSON lines, a plot of the loss, a progress bar."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bpe_llama._files import atomic_write, write_text

Metrics = dict[str, float]


def read_metrics(path: str | os.PathLike[str]) -> list[Metrics]:
    """Return the lines of a `metrics.jsonl`; a last line that a killed process left incomplete is dropped."""
    lines: list[Metrics] = []
    if not Path(path).exists():
        return lines
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


class MetricsFile:
    """Appends JSON lines to `path`; drops those after `step`, which a killed run wrote after its checkpoint."""

    def __init__(self, path: Path, step: int) -> None:
        """Drop the lines after `step` and open the file for appending."""
        lines = [line for line in read_metrics(path) if line["step"] <= step] if step else []
        self._lines = lines
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115, closed by close()

    def last(self, key: str, step: int | None = None) -> float:
        """Return the last value of `key` that the file held at first, or that of `step`; NaN if there is none."""
        found = [line[key] for line in self._lines if key in line and step in (None, line["step"])]
        return found[-1] if found else math.nan

    def write(self, **values: float) -> None:
        """Append one line.

        Raises:
            OSError: If it cannot be written, for example on a full disk.
        """
        left = (json.dumps(values) + "\n").encode()
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def plot_loss(metrics: list[Metrics], path: str | os.PathLike[str], title: str = "Training loss") -> None:
    """Plot training and held-out loss over tokens into a PNG, SVG or PDF, by the suffix of `path`.

    Args:
        metrics: Lines of `metrics.jsonl`: `loss` or `eval_loss` at `tokens`.
        path: File to write; replaced atomically.
        title: Title of the plot.
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
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)


class ProgressBar:
    """A progress bar on stderr, by default only if stderr is a terminal."""

    def __init__(self, shown: bool | None = None) -> None:
        """Show the bar always, never, or (None) only on a terminal."""
        shown = sys.stderr.isatty() if shown is None else shown
        self._progress = Progress(
            TextColumn("step {task.fields[step]:,}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._progress.add_task("train", total=1.0, step=0, loss=float("nan"), rate=0.0)

    def update(self, done: float, **fields: Any) -> None:
        """Show the fraction `done` (0 to 1); `fields` are step, loss and rate."""
        self._progress.update(self._task, completed=done, **fields)

    def __enter__(self) -> ProgressBar:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        self._progress.stop()
