"""The progress of a run on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bpe_llama._progress import is_quiet, start_drawing
from bpe_llama.model.training.callbacks import Callback, Metrics, Run

_SECONDS_BETWEEN_LINES = 5.0


def in_one_line(metrics: Metrics) -> str:
    """Return the metrics of an interval as text for a person; absent ones are left out.

    Example:
        >>> in_one_line({"step": 20, "loss": 2.345, "tokens_per_second": 1234.5, "seconds_left": 75})
        'step 20  loss 2.345  1,234 tokens/s  1:15 left'
    """
    formats = {
        "step": "step {:,.0f}",
        "loss": "loss {:.3f}",
        "bits_per_byte": "{:.3f} bits/byte",
        "eval_loss": "held-out loss {:.3f}",
        "eval_bits_per_byte": "held-out {:.3f} bits/byte",
        "eval_accuracy": "accuracy {:.2%}",
        "learning_rate": "rate {:.2e}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "mfu": "MFU {:.0%}",
    }
    parts = [form.format(metrics[key]) for key, form in formats.items() if key in metrics]
    if "seconds_left" in metrics:
        minutes, seconds = divmod(round(metrics["seconds_left"]), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        parts.append(f"{clock} left")
    return "  ".join(parts)


class ProgressReport(Callback):
    """Shows the loss of the first step at once, then each interval and evaluation.

    Args:
        shown: Whether to show anything; None: yes, a bar if stderr is a terminal, else a line at most every 5 s, unless
            the command has --quiet.
    """

    def __init__(self, shown: bool | None = None) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = not is_quiet() if shown is None else shown
        self._first, self._printed = True, -math.inf
        self._progress = Progress(
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not (self._shown and self._terminal),
        )
        self._task = self._progress.add_task("starting", total=1.0)

    def on_start(self, run: Run) -> None:
        """Start drawing, with the last loss of a resumed run."""
        start_drawing(self._progress)
        if not math.isnan(run.loss):
            self._show(run, {"step": run.step, "loss": run.loss})

    def on_step(self, run: Run, metrics: Metrics) -> None:
        """Show the first step."""
        if self._first:
            self._first = False
            self._show(run, metrics, at_once=True)

    def on_log(self, run: Run, metrics: Metrics) -> None:
        """Show an interval."""
        self._show(run, metrics, at_once=not run.unfinished())

    def on_eval(self, run: Run, metrics: Metrics) -> None:
        """Show an evaluation in a line of its own."""
        if self._shown:
            self._progress.console.print(in_one_line(metrics), highlight=False)

    def close(self) -> None:
        """Stop drawing."""
        self._progress.stop()

    def _show(self, run: Run, metrics: Metrics, at_once: bool = False) -> None:
        if not self._shown:
            return
        line, now = in_one_line(metrics), time.monotonic()
        if self._terminal:
            is_drawn = self._progress.live.auto_refresh
            self._progress.update(self._task, completed=run.done, description=line, refresh=not is_drawn)
        elif at_once or now - self._printed >= _SECONDS_BETWEEN_LINES:
            print(line, file=sys.stderr, flush=True)
            self._printed = now
