"""Reports of a run: metrics as JSON lines, the loss curve as a picture, progress on a terminal."""

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
    """Return the lines of a `metrics.jsonl`; a last line cut short by a killed process is left out."""
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
    """Appends one JSON object a line to `path`; lines after `step`, from a run that was killed, are dropped first."""

    def __init__(self, path: Path, step: int) -> None:
        """Keep the lines up to `step` and open the file for more."""
        kept = [line for line in read_metrics(path) if line["step"] <= step] if step else []
        self._kept = kept
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115, closed by close()

    def last(self, key: str, step: int | None = None) -> float:
        """Return the last value of that name among the lines kept, or that of `step`; NaN where there is none."""
        found = [line[key] for line in self._kept if key in line and step in (None, line["step"])]
        return found[-1] if found else math.nan

    def write(self, **values: float) -> None:
        """Append one line.

        Raises:
            OSError: If the file cannot take it, such as on a full disk.
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
    """Draw training and evaluation loss over tokens seen into a PNG (or SVG, PDF: by the suffix of `path`).

    Args:
        metrics: Lines of `metrics.jsonl`: `loss` or `eval_loss` at `tokens`.
        path: File to write, replaced whole.
        title: Written above the curve.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held-out text", "o--")):
        points = [(line["tokens"], line[key]) for line in metrics if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.2)
    axes.set(xlabel="tokens", ylabel="loss (nats a token)", title=title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)


class ProgressBar:
    """A progress bar on stderr where stderr is a terminal; nothing at all elsewhere.

    The bar follows whichever of steps and time is further on, as the run does.
    """

    def __init__(self, shown: bool | None = None) -> None:
        """Show the bar always, never, or (None) on a terminal."""
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
        """Show that the share `done` (0 to 1) is behind us; `fields` are step, loss and rate."""
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
