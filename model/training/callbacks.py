"""What happens beside the steps of a run: a base class for reports, samples, loggers and a caller's own code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch

from bpe_llama.model.pretrained import Pretrained
from bpe_llama.model.training.config import TrainConfig
from bpe_llama.model.training.data.batches import Batches

Metrics = dict[str, float]


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        step: Steps done, including skipped ones.
        tokens: Tokens trained on, over all epochs.
        seconds: Training time, including that before a resume.
        loss: Training loss in nats per token, of a classifier per text: the mean over the steps of the last line of
            metrics.
        eval_loss: Held-out loss; None without held-out data, or if the run was interrupted.
        interrupted: Whether Ctrl-C or SIGTERM ended the run.
        checkpoint: Folder of the last checkpoint.
        grad_norm: Norm of the last step's gradient, before clipping.
        skipped: Steps skipped because their loss or gradient was not finite.
    """

    step: int
    tokens: int
    seconds: float
    loss: float
    eval_loss: float | None
    interrupted: bool
    checkpoint: Path
    grad_norm: float = math.nan
    skipped: int = 0


class Run(Protocol):
    """What a callback may use of a run, which is the `Trainer`.

    Attributes:
        model: The model that is trained.
        optimizer: Its optimizer.
        config: The options of the run.
        batches: The data.
        step: Steps done.
        loss: The last mean loss; NaN before the first.
        out: Folder of the run.
    """

    model: Pretrained
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    batches: Batches
    step: int
    loss: float
    out: Path

    @property
    def is_main(self) -> bool:
        """Return whether this is the only process or rank 0, which writes files."""

    @property
    def tokens(self) -> int:
        """Return the number of tokens of the steps so far."""

    @property
    def done(self) -> float:
        """Return the fraction of the run that is done."""

    def unfinished(self) -> bool:
        """Return whether steps and time are left."""

    def whole_model(self) -> Pretrained:
        """Return the model with its whole weights; with FSDP every rank calls this, as they are gathered."""


class Callback:
    """Is called while a model is trained; each method does nothing by default.

    An exception ends the run; the last checkpoint stays.

    Of several ranks, rank 0 calls it. With `on_every_rank = True` all of them do, as one needs that uses a sharded
    model (`run.whole_model()` gathers it); `run.is_main` is rank 0.

    Example:
        >>> class Printer(Callback):
        ...     def on_log(self, run, metrics):
        ...         print(metrics["step"], metrics["loss"])
    """

    on_every_rank: ClassVar[bool] = False

    def on_start(self, run: Run) -> None:
        """Before the first step, and after a resume."""

    def on_step(self, run: Run, metrics: Metrics) -> None:
        """After each step; `metrics` has `step`, `loss`, `grad_norm` and `learning_rate`."""

    def on_log(self, run: Run, metrics: Metrics) -> None:
        """At each interval of `config.log_every` steps; `metrics` are means over the interval."""

    def on_eval(self, run: Run, metrics: Metrics) -> None:
        """After an evaluation; `metrics` has `eval_loss`. With `ema_decay` the model holds the averaged weights."""

    def on_checkpoint(self, run: Run, folder: Path) -> None:
        """After a checkpoint was written to `folder`."""

    def on_end(self, run: Run, result: TrainResult) -> None:
        """After the last checkpoint of a run that ended or was interrupted."""

    def close(self) -> None:
        """Release files and terminals, also after an error."""
