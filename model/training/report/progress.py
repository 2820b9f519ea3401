"""The progress bar of a run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bpe_llama.model.training.callbacks import Callback

if TYPE_CHECKING:
    from bpe_llama.model.training.loop import Trainer
    from bpe_llama.model.training.report.metrics import Metrics


class ProgressBar(Callback):
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

    def on_start(self, run: Trainer) -> None:
        """Start drawing."""
        self._progress.start()

    def on_log(self, run: Trainer, metrics: Metrics) -> None:
        """Show the progress, the loss and the speed."""
        self._progress.update(
            self._task, completed=run.done, step=run.step, loss=run.loss, rate=metrics["tokens_per_second"]
        )

    def close(self) -> None:
        """Stop drawing."""
        self._progress.stop()
