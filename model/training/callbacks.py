"""What happens beside the steps of a run: a base class for reports, samples, loggers and a caller's own code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from bpe_llama.model.training.loop import Trainer, TrainResult
    from bpe_llama.model.training.report.metrics import Metrics


class Callback:
    """Is called while a model is trained; each method does nothing by default.

    `run` is the `Trainer`: `run.model`, `run.optimizer`, `run.config`, `run.batches`, `run.step`, `run.out`. An
    exception ends the run; the last checkpoint stays.

    Of several ranks, rank 0 calls it. With `on_every_rank = True` all of them do, as one needs that uses a sharded
    model (`run.whole_model()` gathers it); `run.is_main` is rank 0.

    Example:
        >>> class Printer(Callback):
        ...     def on_log(self, run, metrics):
        ...         print(metrics["step"], metrics["loss"])
    """

    on_every_rank: ClassVar[bool] = False

    def on_start(self, run: Trainer) -> None:
        """Before the first step, and after a resume."""

    def on_step(self, run: Trainer, metrics: Metrics) -> None:
        """After each step; `metrics` has `step`, `loss`, `grad_norm` and `learning_rate`."""

    def on_log(self, run: Trainer, metrics: Metrics) -> None:
        """At each interval of `config.log_every` steps; `metrics` are means over the interval."""

    def on_eval(self, run: Trainer, metrics: Metrics) -> None:
        """After an evaluation; `metrics` has `eval_loss`."""

    def on_checkpoint(self, run: Trainer, folder: Path) -> None:
        """After a checkpoint was written to `folder`."""

    def on_end(self, run: Trainer, result: TrainResult) -> None:
        """After the last checkpoint of a run that ended or was interrupted."""

    def close(self) -> None:
        """Release files and terminals, also after an error."""
