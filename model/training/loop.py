"""The training loop."""

from __future__ import annotations

import contextlib
import math
import operator
import threading
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from bpe_llama.model.evaluation.bits_per_byte import bits_per_byte
from bpe_llama.model.pretrained import Pretrained
from bpe_llama.model.training.callbacks import Callback, Metrics, TrainResult
from bpe_llama.model.training.checkpoints.checkpoint import TrainState, base_fingerprint, save_checkpoint
from bpe_llama.model.training.config import TrainConfig, learning_rate_at
from bpe_llama.model.training.data.batches import Batch, Batches, epochs_of
from bpe_llama.model.training.data.prefetch import Prefetch
from bpe_llama.model.training.held_out import held_out_loss
from bpe_llama.model.training.optimizers.state import WeightAverage
from bpe_llama.model.training.parallel import Ranks, ReplicatedLoss, gather
from bpe_llama.model.training.process import interrupts, keep_freed_memory, return_freed_memory
from bpe_llama.model.training.report.throughput import expert_loads, flops_per_token, peak_flops
from bpe_llama.model.training.step import (
    LossFunction,
    Recent,
    Scored,
    TensorBatch,
    batch_loss,
    batch_score,
    clip_gradients,
    gradient_norm,
    seeded,
)

SAVE_SECONDS = 600.0
"""Training time between checkpoints, unless `TrainConfig.save_every` sets their steps."""


class LastMetrics(NamedTuple):
    """The last figures of `metrics.jsonl`, those of evaluation and tokens at the step of a checkpoint."""

    loss: float = math.nan
    grad_norm: float = math.nan
    eval_loss: float = math.nan
    tokens: int = 0


@dataclass(eq=False, repr=False)
class Trainer:
    """One run: model, optimizer and data, and the loop over optimizer steps; with FSDP `whole` is the whole model."""

    model: Pretrained
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    batches: Batches
    _: KW_ONLY
    device: torch.device
    out: Path
    held_out: Sequence[Batch] = ()
    loss_fn: LossFunction = batch_loss
    score_fn: LossFunction = batch_score
    callbacks: Sequence[Callback] = ()
    token_bytes: npt.NDArray[np.int64] | None = None
    ranks: Ranks = field(default_factory=Ranks)
    whole: Pretrained | None = None

    def __post_init__(self) -> None:
        config, sharded = self.config, self.ranks.sharded
        uses_all = getattr(self.loss_fn, "func", self.loss_fn) in (batch_loss, batch_score)
        if config.compile and not sharded:
            self.loss_fn = torch.compile(self.loss_fn)
        if self.ranks.world > 1 and not sharded:
            self.loss_fn = ReplicatedLoss(self.model, self.loss_fn, uses_all=uses_all)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        use_bfloat16 = config.uses_bfloat16(self.device.type)
        self.matmul_dtype = torch.bfloat16 if use_bfloat16 else torch.float32
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=use_bfloat16)
        self.average = WeightAverage(self.optimizer, config.ema_decay) if config.ema_decay else None
        self.consecutive_skips, self._done_before, self._started, self._logged_wait = 0, 0.0, time.perf_counter(), 0.0
        self.resume(TrainState(0, 0.0, {}), None, LastMetrics())
        self._agreed: tuple[bool, float] | None = None  # among ranks: whether to stop, and the time

    def resume(self, state: TrainState, checkpoint: Path | None, last: LastMetrics) -> None:
        """Continue from `state`, which was loaded from `checkpoint`; without one it is the start of a run."""
        self.step, self.skipped, self.checkpoint = state.step, state.skipped, checkpoint
        self._saved_step = state.step if checkpoint else -1
        self._recent = state.recent
        self._trained_before = self._logged_at = self._saved_at = state.elapsed
        self._logged_step, self._rows = state.step, 0  # rows since then
        # An iterable knows its tokens when it was read again.
        self.loss, self.grad_norm, self.eval_loss, self._tokens_before = last

    def run(self) -> TrainResult:
        """Train until the end of the run, or until Ctrl-C or SIGTERM, and save a checkpoint."""
        config = self.config
        with contextlib.ExitStack() as closing, interrupts() as stop, torch.enable_grad():
            keep_freed_memory()
            closing.callback(return_freed_memory)
            for callback in self.callbacks:
                closing.callback(callback.close)
            if self.ranks.world > 1:
                self.model.over_ranks = self.ranks.sum_tensor
                closing.callback(setattr, self.model, "over_ranks", None)
            self.model.train()
            self._started = time.perf_counter()
            self._done_before = self.done
            first, end = (step * config.gradient_accumulation for step in (self.step, config.max_steps))
            self.ahead = Prefetch(self.batches, range(first, end), 2 * config.gradient_accumulation)
            closing.callback(self.ahead.close)
            self._call("on_start")
            self._agree(stop)
            last = not self.unfinished()
            while not last and not self._stopped(stop):
                rate = learning_rate_at(config, self.step, self.elapsed)
                result = self.optimizer_step(rate, stop)
                if result is None:
                    break
                self._agree(stop)
                last = self._count(*result, rate)
                if self.step % config.log_every == 0 or last:
                    self._log(rate)
                began = time.perf_counter()
                if len(self.held_out) and (last or _is_due(self.step, config.eval_every)):
                    self._evaluate()
                if self._save_is_due() and not self.consecutive_skips:
                    self._save()
                self._logged_at += time.perf_counter() - began  # neither counts in tokens_per_second
            if self._saved_step != self.step:
                self._save()
            if self.average:
                self.average.load()
            self.model.eval()
            self.whole_model().eval()
            result_of_run = TrainResult(
                step=self.step,
                tokens=self.tokens or self._tokens_before,
                seconds=self.elapsed,
                loss=self.loss,
                eval_loss=None if self._stopped(stop) or math.isnan(self.eval_loss) else self.eval_loss,
                interrupted=self._stopped(stop),
                checkpoint=self.checkpoint,  # type: ignore[arg-type]
                grad_norm=self.grad_norm,
                skipped=self.skipped,
            )
            self._call("on_end", result_of_run)
            self.ranks.barrier()
        return result_of_run

    @property
    def tokens(self) -> int:
        """Return the number of tokens of the steps so far."""
        return self.batches.tokens_before(self.step * self.config.gradient_accumulation)

    @property
    def elapsed(self) -> float:
        """Return the seconds trained so far, those before a resume included; among ranks, at the last step."""
        if self._agreed is not None:
            return self._agreed[1]
        return self._trained_before + time.perf_counter() - self._started

    @property
    def done(self) -> float:
        """Return the fraction of the run that is done: of its steps or of its time, the larger."""
        by_time = self.elapsed / self.config.max_seconds if self.config.max_seconds else 0.0
        return max(self.step / self.config.max_steps, by_time)

    @property
    def is_main(self) -> bool:
        """Return whether this is the only process or rank 0, which writes files."""
        return self.ranks.is_main

    def whole_model(self) -> Pretrained:
        """Return the model with its whole weights; with FSDP every rank calls this, as they are gathered."""
        if self.whole is None:
            return self.model
        gather(self.model, self.whole)
        return self.whole

    def unfinished(self) -> bool:
        """Return whether steps and time are left."""
        return self.done < 1

    def optimizer_step(self, rate: float, interrupted: threading.Event) -> tuple[Recent, float] | None:
        """Accumulate the gradient over micro-batches, and update the weights if loss and gradient are finite.

        Returns the figures of the step and the 2-norm of the gradient before clipping, or None if the run is
        interrupted before the last micro-batch: nothing is changed then. A `ValueError` says if no token is learned.
        """
        config = self.config
        batches = self.ahead.take(config.gradient_accumulation, interrupted if self.ranks.world == 1 else None)
        if len(batches) < config.gradient_accumulation:
            return None
        self._rows += sum(len(batch.ids) for batch in batches)
        learned = sum(batch.learned for batch in batches)
        if not learned:  # the loss would be 0 / 0
            first, more = self.step * len(batches), len(batches) - 1
            raise ValueError(
                f"batch {first}{f' to {first + more}' if more else ''}, all of step {self.step + 1}, has no token to "
                "learn; expected a label besides -100 after the first of a row. The last checkpoint stays"
            )
        sums = torch.zeros(2, device=self.device)  # the loss; the nats of text
        with seeded(config.seed, self.step, self.device, self.ranks.rank):
            for index, batch in enumerate(batches):
                if interrupted.is_set() and self.ranks.world == 1:
                    self.optimizer.zero_grad(set_to_none=True)
                    return None
                rows = TensorBatch.of(self.ranks.rows(batch), self.device, self.token_bytes)
                with self._accumulating(index), self.autocast:
                    scored = Scored.of(self.loss_fn(self.model, rows, learned))
                scored.loss.backward()  # type: ignore[no-untyped-call]
                sums[0] += scored.loss.detach()
                if scored.text_nats is not None:
                    sums[1] += scored.text_nats
        sums, norm = self.ranks.reduce(sums, gradient_norm(self.parameters))
        size = 0 if scored.text_nats is None else sum(batch.bytes(self.token_bytes) for batch in batches)
        loss_value, nats, norm_value = torch.cat([sums, norm[None]]).tolist()
        if math.isfinite(loss_value) and math.isfinite(norm_value):
            if config.gradient_clip and norm_value + 1e-6 > config.gradient_clip:  # else the factor is 1
                clip_gradients(self.parameters, config.gradient_clip, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            if self.average:
                self.average.update(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        return Recent(loss_value, 1, nats, size), norm_value

    def _accumulating(self, index: int) -> contextlib.AbstractContextManager[None]:
        """Return the context of a micro-batch: with DDP all but the last of a step exchange no gradients."""
        if isinstance(self.loss_fn, ReplicatedLoss) and index < self.config.gradient_accumulation - 1:
            return self.loss_fn.ddp.no_sync()
        return contextlib.nullcontext()

    def _agree(self, stop: threading.Event) -> None:
        """Agree with the other ranks whether one was told to stop, and on rank 0's clock."""
        if self.ranks.world > 1:
            self._agreed = None
            told, now = self.ranks.sum(stop.is_set(), self.elapsed if self.is_main else 0.0)
            self._agreed = told > 0, now

    def _stopped(self, stop: threading.Event) -> bool:
        """Return whether to stop; several ranks stop after the same step."""
        return self._agreed[0] if self._agreed else stop.is_set()

    def _count(self, figures: Recent, norm: float, rate: float) -> bool:
        """Count a step, skipped or not, and return whether it was the last of the run; too many skipped ones raise."""
        self.step += 1
        if math.isfinite(figures.loss) and math.isfinite(norm):
            self._recent = Recent(*map(operator.add, self._recent, figures))
            self.grad_norm, self.consecutive_skips = norm, 0
        else:
            self.skipped, self.consecutive_skips = self.skipped + 1, self.consecutive_skips + 1
        last = not self.unfinished()
        if self.consecutive_skips > self.config.max_skipped_steps or (last and self.consecutive_skips == self.step):
            raise ValueError(
                f"the loss is {figures.loss} and the gradient norm {norm} at step {self.step}, learning "
                f"rate {rate:.3g}, as at the {self.consecutive_skips - 1} steps before: all of them were skipped; "
                "try a lower learning rate. The last checkpoint stays"
            )
        step: Metrics = {"step": self.step, "loss": figures.loss, "grad_norm": norm, "learning_rate": rate}
        self._call("on_step", step)
        return last

    def _log(self, rate: float) -> None:
        metrics: Metrics = {"step": self.step, "tokens": self.tokens}
        recent, self.loss = self._recent, math.nan
        if recent.steps:
            self.loss = recent.loss / recent.steps
            metrics |= {"loss": self.loss, "grad_norm": self.grad_norm}
            if recent.bytes:
                metrics["bits_per_byte"] = bits_per_byte(recent.nats, recent.bytes)
        if self.skipped:
            metrics["skipped"] = self.skipped
        metrics |= {"learning_rate": rate, "seconds": round(self.elapsed, 3), **self._speed()}
        metrics |= epochs_of(self.batches, self.step * self.config.gradient_accumulation)
        loads = expert_loads(self.model)
        if loads is not None:
            metrics["expert_load_min"], metrics["expert_load_max"] = loads
        self._call("on_log", metrics)
        self._logged_step, self._logged_at, self._logged_wait = self.step, self.elapsed, self.ahead.waited
        self._recent, self._rows = Recent(), 0

    def _speed(self) -> Metrics:
        tokens_before = self.batches.tokens_before(self._logged_step * self.config.gradient_accumulation)
        tokens = self.tokens - tokens_before
        tokens_per_second = tokens / max(self.elapsed - self._logged_at, 1e-9)
        peak = peak_flops(self.device, self.matmul_dtype, torch.get_num_threads()) * self.ranks.world
        speed = {
            "tokens_per_second": round(tokens_per_second, 1),
            "data_wait": round(self.ahead.waited - self._logged_wait, 4),
            "mfu": round(flops_per_token(self.model, round(tokens / self._rows)) * tokens_per_second / peak, 4),
        }
        trained = self.done - self._done_before
        if trained > 0:
            seconds = self.elapsed - self._trained_before
            speed["seconds_left"] = round(seconds * (1 - min(1.0, self.done)) / trained, 1)
        return speed

    def _evaluate(self) -> None:
        with self.average.swapped() if self.average else contextlib.nullcontext():
            with self.autocast:
                found = held_out_loss(self.model, self.held_out, self.token_bytes, self.score_fn, self.ranks)
            self.eval_loss = found.loss
            metrics: Metrics = {"step": self.step, "tokens": self.tokens, "eval_loss": found.loss}
            metrics |= {f"eval_{name}": value for name, value in found._asdict().items() if not math.isnan(value)}
            self._call("on_eval", metrics)

    def _save_is_due(self) -> bool:
        """Return whether to save a checkpoint; ranks agree, as they do on the time."""
        if self.config.save_every is None:
            return self.elapsed - self._saved_at >= SAVE_SECONDS
        return _is_due(self.step, self.config.save_every)

    def _save(self) -> None:
        whole, data = self.whole_model(), self.batches.fingerprint
        base = base_fingerprint(whole) if self.is_main else ""  # rank 0 writes
        state = TrainState(self.step, self.elapsed, self.config.to_dict(), self.skipped, self._recent, data, base)
        self.checkpoint = save_checkpoint(
            self.out, whole, self.optimizer, state, self.ranks, self.model, self.config.save_total_limit
        )
        self._saved_step, self._saved_at = self.step, self.elapsed
        self._call("on_checkpoint", self.checkpoint)

    def _call(self, method: str, *arguments: object) -> None:
        for callback in self.callbacks:
            getattr(callback, method)(self, *arguments)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
