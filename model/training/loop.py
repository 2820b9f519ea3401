"""The training loop, over batches of ids: `train` for token files, `train_on_examples` for examples."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bpe_llama.model.device import resolve_device
from bpe_llama.model.training.checkpoint import (
    TrainState,
    check_same_run,
    check_trainable,
    checkpoint_to_resume,
    load_checkpoint,
    save_checkpoint,
)
from bpe_llama.model.training.config import TrainConfig, learning_rate_at
from bpe_llama.model.training.data.batches import Batches, TokenBatches, open_tokens, split_held_out
from bpe_llama.model.training.data.examples import Example, ExampleBatches
from bpe_llama.model.training.evaluate import evaluate, evaluate_examples
from bpe_llama.model.training.interrupts import interrupts
from bpe_llama.model.training.lock import locked
from bpe_llama.model.training.optimizer import adamw
from bpe_llama.model.training.report import MetricsFile, ProgressBar, plot_loss, read_metrics
from bpe_llama.model.training.step import StepResult, batch_loss, gradient_norm, learned_tokens, seeded

if TYPE_CHECKING:
    from bpe_llama.model.classification import LlamaForSequenceClassification
    from bpe_llama.model.llama import LlamaForCausalLM

    AnyModel: TypeAlias = LlamaForCausalLM | LlamaForSequenceClassification


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        step: Steps done, including skipped ones.
        tokens: Tokens trained on, over all epochs.
        seconds: Training time, including that before a resume.
        loss: Training loss in nats per token, the mean over the steps of the last line of metrics.
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


def train(
    model: LlamaForCausalLM,
    token_file: str | os.PathLike[str],
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    eval_file: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> TrainResult:
    """Train `model` in place on a token file, and return the result.

    `out` receives `metrics.jsonl`, `loss.png` and the latest checkpoint, a folder `step-…` that loads as a model.
    The first Ctrl-C or SIGTERM saves a checkpoint and ends the run; a second one ends it at once. The loss of a step is
    the mean over all of its learned tokens, whatever the micro-batches. A step whose loss or gradient is not finite is
    skipped.

    Args:
        model: The model; moved to the device, its trained weights converted to `config.weights_dtype`.
        token_file: `.npy` of uint16 or uint32 tokens, as `Tokenizer.encode_files` writes.
        config: The run's options.
        out: Folder of the run; created if it does not exist.
        eval_file: Tokens to evaluate on, instead of the end of `token_file`.
        resume: Resume from the checkpoint in `out`, if there is one. On a CPU the losses equal those of a run without
            the interruption.
        progress: Show a progress bar on stderr; None: only if stderr is a terminal.

    Raises:
        FileNotFoundError: If a token file is missing.
        ValueError: If the data does not fit the model; if `out` holds another run's checkpoint, or its options or data
            differ, or it is locked; if too many consecutive steps were skipped. The last checkpoint stays.
        OSError: If a checkpoint cannot be written, for example on a full disk. The last one stays.

    Example:
        >>> result = train(model, "tokens.npy", TrainConfig(max_steps=100), "run")  # doctest: +SKIP
        >>> result.loss  # doctest: +SKIP
        3.2
    """
    limit = model.config.max_position_embeddings
    if config.sequence_length > limit:
        raise ValueError(f"sequence_length is {config.sequence_length:,}, the model's context is {limit:,}")
    tokens = open_tokens(token_file)
    if eval_file is None:
        tokens, held_out = split_held_out(tokens, config.eval_fraction, config.sequence_length)
    else:
        held_out = open_tokens(eval_file)
    batches = TokenBatches(
        tokens,
        window=config.sequence_length,
        batch_size=config.batch_size,
        vocab_size=model.config.vocab_size,
        seed=config.seed,
    )

    def held_out_loss() -> float:
        return evaluate(
            model,
            held_out,
            window=config.sequence_length,
            batch_size=config.batch_size,
            max_windows=config.eval_windows,
        )

    with locked(Path(out)):
        return start(model, batches, held_out_loss if len(held_out) else None, config, Path(out), resume, progress)


def train_on_examples(
    model: LlamaForCausalLM,
    examples: Sequence[Example],
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    eval_examples: Sequence[Example] = (),
    resume: bool = False,
    progress: bool | None = None,
) -> TrainResult:
    """Train `model` in place on examples whose labels mask some tokens, such as prompts, and return the result.

    Works as `train`, except that each example is a row of its own, padded to the longest of its batch.
    `config.sequence_length`, `config.eval_fraction` and `config.eval_windows` have no effect.

    Args:
        model: The model; moved to the device, its trained weights converted to `config.weights_dtype`.
        examples: The training data.
        config: The run's options.
        out: Folder of the run; created if it does not exist.
        eval_examples: Held-out examples.
        resume: Resume from the checkpoint in `out`, if there is one.
        progress: Show a progress bar on stderr; None: only if stderr is a terminal.

    Raises:
        ValueError: As `train`; or if an example has no token to learn or is longer than the model's context.
    """
    batches = ExampleBatches(examples, batch_size=config.batch_size, seed=config.seed)
    for example in [*examples, *eval_examples]:
        example.check(model.config.vocab_size, model.config.max_position_embeddings)

    def held_out_loss() -> float:
        return evaluate_examples(model, eval_examples, batch_size=config.batch_size)

    with locked(Path(out)):
        return start(model, batches, held_out_loss if eval_examples else None, config, Path(out), resume, progress)


def start(
    model: AnyModel,
    batches: Batches,
    held_out_loss: Callable[[], float] | None,
    config: TrainConfig,
    out: Path,
    resume: bool,
    progress: bool | None,
    loss_fn: Callable[..., Tensor] = batch_loss,
) -> TrainResult:
    """Run `train` on any batches, with the loss of a micro-batch as a callable that takes what `batch_loss` takes."""
    check_trainable(model, predicts_text=loss_fn is batch_loss)
    device = resolve_device(config.device)
    _move(model, device, torch.bfloat16 if config.weights_dtype == "bfloat16" else torch.float32)
    optimizer = adamw(
        model,
        learning_rate=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        seed=config.seed,
    )
    checkpoint = checkpoint_to_resume(out, resume)
    state = TrainState(0, 0.0, {})
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, model, optimizer)
        check_same_run(checkpoint, config, state, batches)
    trainer = Trainer(model, optimizer, config, batches, held_out_loss, device, out, loss_fn)
    return trainer.run(state, checkpoint, progress)


def _move(model: AnyModel, device: torch.device, dtype: torch.dtype) -> None:
    """Move the model to the device, and convert only its trained parameters to `dtype`."""
    if all(parameter.requires_grad for parameter in model.parameters()):
        model.to(device=device, dtype=dtype)
        return
    model.to(device=device)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


class Trainer:
    """One run: model, optimizer and data, and the loop over optimizer steps."""

    def __init__(
        self,
        model: AnyModel,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        batches: Batches,
        held_out_loss: Callable[[], float] | None,
        device: torch.device,
        out: Path,
        loss_fn: Callable[..., Tensor] = batch_loss,
    ) -> None:
        self.model, self.optimizer, self.config = model, optimizer, config
        self.batches, self.held_out_loss, self.device, self.out = batches, held_out_loss, device, out
        self.batch_loss = torch.compile(loss_fn) if config.compile else loss_fn
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        use_bfloat16 = config.dtype == "bfloat16" or (
            config.dtype == "auto" and (device.type == "cuda" or config.weights_dtype == "bfloat16")
        )
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16)

    def run(self, state: TrainState, resumed: Path | None, progress: bool | None) -> TrainResult:
        """Train from `state`, loaded from the checkpoint `resumed` if any, until the end or an interruption."""
        config = self.config
        step, resumed_at, skipped = state.step, state.elapsed, state.skipped
        (recent_loss, recent_steps), consecutive_skips = state.recent, 0
        checkpoint, saved_step = resumed, step if resumed else -1
        logged_step, logged_at = step, resumed_at
        metrics = MetricsFile(self.out / "metrics.jsonl", step)
        loss, grad_norm = metrics.last("loss"), metrics.last("grad_norm")
        eval_loss = metrics.last("eval_loss", step)
        self.model.train()
        with (
            contextlib.closing(metrics),
            interrupts() as stop,
            ProgressBar(progress) as bar,
            torch.enable_grad(),
        ):
            started = time.perf_counter()

            def elapsed() -> float:
                return resumed_at + time.perf_counter() - started

            def save() -> Path:
                recent = (recent_loss, recent_steps)
                state = TrainState(step, elapsed(), config.to_dict(), skipped, recent, self.batches.fingerprint)
                return save_checkpoint(self.out, self.model, self.optimizer, state)

            while self.unfinished(step, elapsed()) and not stop.is_set():
                rate = learning_rate_at(config, step, elapsed())
                result = self.optimizer_step(step, rate, stop)
                if result is None:
                    break
                step += 1
                if result.finite:
                    recent_loss, recent_steps, consecutive_skips = recent_loss + result.loss, recent_steps + 1, 0
                    grad_norm = result.grad_norm
                else:
                    skipped, consecutive_skips = skipped + 1, consecutive_skips + 1
                now, last = elapsed(), not self.unfinished(step, elapsed())
                if consecutive_skips > config.max_skipped_steps or (last and consecutive_skips == step):
                    raise ValueError(
                        f"the loss is {result.loss} and the gradient norm {result.grad_norm} at step {step}, learning "
                        f"rate {rate:.3g}, as at the {consecutive_skips - 1} steps before: all of them were "
                        "skipped; try a lower learning rate. The last checkpoint stays"
                    )
                if step % config.log_every == 0 or last:
                    loss = recent_loss / recent_steps if recent_steps else math.nan
                    tokens_per_second = (self.tokens(step) - self.tokens(logged_step)) / max(
                        elapsed() - logged_at, 1e-9
                    )
                    metrics.write(
                        step=step,
                        tokens=self.tokens(step),
                        **({"loss": loss, "grad_norm": grad_norm} if recent_steps else {}),
                        **({"skipped": skipped} if skipped else {}),
                        learning_rate=rate,
                        seconds=round(now, 3),
                        tokens_per_second=round(tokens_per_second, 1),
                    )
                    bar.update(self.done(step, now), step=step, loss=loss, rate=tokens_per_second)
                    logged_step, logged_at, recent_loss, recent_steps = step, elapsed(), 0.0, 0
                if self.held_out_loss is not None and (last or (config.eval_every and step % config.eval_every == 0)):
                    with self.autocast:
                        eval_loss = self.held_out_loss()
                    metrics.write(step=step, tokens=self.tokens(step), eval_loss=eval_loss)
                if config.save_every and step % config.save_every == 0 and not consecutive_skips:
                    checkpoint, saved_step = save(), step
            if checkpoint is None or saved_step != step:
                checkpoint = save()
            seconds, interrupted = elapsed(), stop.is_set()
        plot_loss(read_metrics(self.out / "metrics.jsonl"), self.out / "loss.png")
        self.model.eval()
        return TrainResult(
            step=step,
            tokens=self.tokens(step),
            seconds=seconds,
            loss=loss,
            eval_loss=None if interrupted or math.isnan(eval_loss) else eval_loss,
            interrupted=interrupted,
            checkpoint=checkpoint,
            grad_norm=grad_norm,
            skipped=skipped,
        )

    def tokens(self, step: int) -> int:
        """Return the number of tokens of the first `step` steps."""
        return self.batches.tokens_before(step * self.config.gradient_accumulation)

    def unfinished(self, step: int, elapsed: float) -> bool:
        """Return whether steps and time are left."""
        return self.done(step, elapsed) < 1

    def done(self, step: int, elapsed: float) -> float:
        """Return the fraction of the run that is done: of its steps or of its time, the larger."""
        by_time = elapsed / self.config.max_seconds if self.config.max_seconds else 0.0
        return max(step / self.config.max_steps, by_time)

    def optimizer_step(self, step: int, rate: float, interrupted: threading.Event) -> StepResult | None:
        """Accumulate the gradient over micro-batches, update the weights if it is finite, and return loss and norm.

        Returns None and changes nothing if the run is interrupted before the last micro-batch.
        """
        config = self.config
        indices = range(step * config.gradient_accumulation, (step + 1) * config.gradient_accumulation)
        arrays = [self.batches.inputs_and_labels(index) for index in indices]
        learned = learned_tokens([labels for _, labels in arrays])
        total = torch.zeros((), device=self.device)
        with seeded(config.seed, step, self.device):
            for index, (ids, labels) in zip(indices, arrays, strict=True):
                if interrupted.is_set():
                    self.optimizer.zero_grad(set_to_none=True)
                    return None
                # With causal attention no token attends to padding on its right; only an expert router needs a mask.
                mask = self.batches.attention_mask(index) if self.model.config.num_local_experts else None
                with self.autocast:
                    loss = self.batch_loss(
                        self.model,
                        self.on_device(ids),
                        self.on_device(labels),
                        None if mask is None else self.on_device(mask),
                        learned,
                    )
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        norm = gradient_norm(self.parameters)
        result = StepResult(*torch.stack([total, norm]).tolist())
        if result.finite:
            if config.gradient_clip:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, config.gradient_clip, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return result

    def on_device(self, array: npt.NDArray[np.int64]) -> Tensor:
        """Return the array on the model's device; copied to CUDA without waiting."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)
