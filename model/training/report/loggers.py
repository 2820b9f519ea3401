"""Sends the metrics of a run to TensorBoard, Weights & Biases or trackio."""

from __future__ import annotations

import importlib
from typing import Any

from bpe_llama._core import shown
from bpe_llama.model.training.callbacks import Callback, Metrics, Run

LOGGERS = ("tensorboard", "wandb", "trackio")


class Logger(Callback):
    """Sends the numbers of each interval and evaluation to `log`, which a subclass defines."""

    def log(self, step: int, values: Metrics) -> None:
        """Record `values` at `step`."""
        raise NotImplementedError

    def on_log(self, run: Run, metrics: Metrics) -> None:
        """Record an interval or an evaluation."""
        self.log(int(metrics["step"]), {key: value for key, value in metrics.items() if key != "step"})

    on_eval = on_log


class TensorBoard(Logger):
    """Writes event files into the folder `tensorboard` of the run."""

    def __init__(self) -> None:
        self._module = _imported("tensorboard", "torch.utils.tensorboard")
        self._writer: Any = None

    def on_start(self, run: Run) -> None:
        """Open the event file; events after the step of the checkpoint are hidden."""
        self._writer = self._module.SummaryWriter(str(run.out / "tensorboard"), purge_step=run.step + 1)

    def log(self, step: int, values: Metrics) -> None:
        """Write one scalar a value."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class Tracker(Logger):
    """Sends metrics to a package with the functions `init`, `log` and `finish`: `"wandb"` or `"trackio"`.

    The project is `bpe_llama`, the run is named as its folder, and its config holds the options of training. Set the
    package's own environment variables for other choices, such as `WANDB_MODE=offline`.
    """

    def __init__(self, package: str) -> None:
        self._module, self._run = _imported(package, package), None

    def on_start(self, run: Run) -> None:
        """Begin a run there."""
        self._run = self._module.init(project="bpe_llama", name=run.out.resolve().name, config=run.config.to_dict())

    def log(self, step: int, values: Metrics) -> None:
        """Send the values."""
        self._module.log(values, step=step)

    def close(self) -> None:
        """End the run there."""
        if self._run is not None:
            self._module.finish()


def logger_named(name: str) -> Logger:
    """Return the logger with this name, one of `LOGGERS`; an `ImportError` names the extra that is not installed."""
    if name not in LOGGERS:
        raise ValueError(f"logger is {shown(name)}, expected {', '.join(LOGGERS[:-1])} or {LOGGERS[-1]}")
    return TensorBoard() if name == "tensorboard" else Tracker(name)


def _imported(extra: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"logging to {extra} needs its package: pip install 'bpe_llama[{extra}]'") from error
