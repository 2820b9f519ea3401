"""The training loop: batches in, checkpoints and metrics out. Knows ids and losses, never text."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bpe_llama.model.device import resolve_device
from bpe_llama.model.training.checkpoint import TrainState, checkpoint_to_resume, load_checkpoint, save_checkpoint
from bpe_llama.model.training.config import TrainConfig, learning_rate_at
from bpe_llama.model.training.data import Batches, TokenBatches, open_tokens, split_tail
from bpe_llama.model.training.evaluate import evaluate, evaluate_examples
from bpe_llama.model.training.examples import Example, ExampleBatches
from bpe_llama.model.training.optimizer import adamw
from bpe_llama.model.training.report import MetricsFile, ProgressBar, plot_loss, read_metrics

if TYPE_CHECKING:
    from bpe_llama.model.llama import LlamaForCausalLM

# Settings that decide which tokens a step sees: a resumed run must keep them.
_FIXED = ("sequence_length", "batch_size", "gradient_accumulation", "eval_fraction", "seed")


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: Optimizer steps taken.
        tokens: Tokens trained on, repeats counted.
        seconds: Time trained, resumed parts included.
        loss: Training loss (nats a token), mean of the last logged steps; NaN where no step was left to take.
        eval_loss: Loss on the held-out tokens, None where there are none or the run was interrupted.
        interrupted: Whether Ctrl-C ended it.
        checkpoint: Folder of the last checkpoint.
    """

    step: int
    tokens: int
    seconds: float
    loss: float
    eval_loss: float | None
    interrupted: bool
    checkpoint: Path


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
    """Train `model` on a token file and return how it went; the model is trained in place.

    `out` receives `metrics.jsonl`, `loss.png` and the latest checkpoint, a folder `step-…` that loads as a model.
    Ctrl-C ends the run after a checkpoint; a second one at once.

    Args:
        model: The model; moved to the device, and what is trained held in float32.
        token_file: `.npy` of uint16 or uint32 tokens, as `Tokenizer.encode_files` writes.
        config: The run's settings.
        out: Folder of the run, made where absent.
        eval_file: Tokens to evaluate on, instead of the end of `token_file`.
        resume: Go on from the checkpoint in `out`, where there is one. On a CPU the losses equal those of a run that
            was never stopped.
        progress: Show a bar on stderr; None: where that is a terminal.

    Raises:
        FileNotFoundError: If a token file is missing.
        ValueError: If the data does not fit the model, `out` holds a run that is not to be resumed or was made with
            other settings, or the loss is no longer finite; the last checkpoint stays.

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
        tokens, held_out = split_tail(tokens, config.eval_fraction, config.sequence_length)
    else:
        held_out = open_tokens(eval_file)
    batches = TokenBatches(
        tokens,
        window=config.sequence_length,
        batch_size=config.batch_size,
        vocab_size=model.config.vocab_size,
        seed=config.seed,
    )

    def measure() -> float:
        return evaluate(
            model,
            held_out,
            window=config.sequence_length,
            batch_size=config.batch_size,
            max_windows=config.eval_windows,
        )

    return _start(model, batches, measure if len(held_out) else None, config, Path(out), resume, progress)


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
    """Train `model` on texts of which only parts are learned, such as a conversation's answers; return how it went.

    Everything is as for `train`, but each text is a row of its own, padded to the longest of its batch, and
    `config.sequence_length`, `config.eval_fraction` and `config.eval_windows` go unused.

    Args:
        model: The model; moved to the device, and what is trained held in float32.
        examples: The texts.
        config: The run's settings.
        out: Folder of the run, made where absent.
        eval_examples: Texts to evaluate on.
        resume: Go on from the checkpoint in `out`, where there is one.
        progress: Show a bar on stderr; None: where that is a terminal.

    Raises:
        ValueError: As `train`; or if a text holds nothing to learn or is longer than the model's context.
    """
    batches = ExampleBatches(examples, batch_size=config.batch_size, seed=config.seed)
    for example in [*examples, *eval_examples]:
        example.check(model.config.vocab_size, model.config.max_position_embeddings)

    def measure() -> float:
        return evaluate_examples(model, eval_examples, batch_size=config.batch_size)

    return _start(model, batches, measure if eval_examples else None, config, Path(out), resume, progress)


def _start(
    model: LlamaForCausalLM,
    batches: Batches,
    measure: Callable[[], float] | None,
    config: TrainConfig,
    out: Path,
    resume: bool,
    progress: bool | None,
) -> TrainResult:
    device = resolve_device(config.device)
    _place(model, device)
    optimizer = adamw(model, learning_rate=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
    checkpoint = checkpoint_to_resume(out, resume)
    state = TrainState(0, 0.0, {})
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, model, optimizer)
        _check_same_run(checkpoint, config, state)
    out.mkdir(parents=True, exist_ok=True)
    run = _Run(model, optimizer, config, batches, measure, device, out)
    return run.go(state, progress)


def _place(model: LlamaForCausalLM, device: torch.device) -> None:
    """Move the model; hold in float32 what is trained, since small steps vanish in fewer bits, and that alone."""
    if all(parameter.requires_grad for parameter in model.parameters()):
        model.to(device=device, dtype=torch.float32)
        return
    model.to(device=device)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class _Run:
    """One run: what the loop needs at hand."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        optimizer: torch.optim.AdamW,
        config: TrainConfig,
        batches: Batches,
        measure: Callable[[], float] | None,
        device: torch.device,
        out: Path,
    ) -> None:
        self.model, self.optimizer, self.config = model, optimizer, config
        self.batches, self.measure, self.device, self.out = batches, measure, device, out
        self.forward = torch.compile(model) if config.compile else model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        half = config.dtype == "bfloat16" or (config.dtype == "auto" and device.type == "cuda")
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=half)

    def go(self, state: TrainState, progress: bool | None) -> TrainResult:
        config = self.config
        step, resumed_at = state.step, state.elapsed
        loss, saved_step, eval_loss = math.nan, -1, None
        log_from, since, recent = step, resumed_at, torch.zeros((), device=self.device)
        metrics = MetricsFile(self.out / "metrics.jsonl", step)
        self.model.train()
        with (
            contextlib.closing(metrics),
            _interrupts() as stop,
            ProgressBar(progress) as bar,
            torch.enable_grad(),
        ):
            began = time.perf_counter()

            def elapsed() -> float:
                return resumed_at + time.perf_counter() - began

            while self.left(step, elapsed()) and not stop.is_set():
                rate = learning_rate_at(config, step, elapsed())
                step_loss = self.step(step, rate, stop)
                if step_loss is None:
                    break
                step, recent = step + 1, recent + step_loss
                now, last = elapsed(), not self.left(step, elapsed())
                if step % config.log_every == 0 or last:
                    loss = recent.item() / (step - log_from)
                    if not math.isfinite(loss):
                        raise ValueError(
                            f"the loss is {loss} after step {step} at learning rate {rate:.3g}; try a lower one"
                        )
                    speed = (self.tokens(step) - self.tokens(log_from)) / max(elapsed() - since, 1e-9)
                    metrics.write(
                        step=step,
                        tokens=self.tokens(step),
                        loss=loss,
                        learning_rate=rate,
                        seconds=round(now, 3),
                        tokens_per_second=round(speed, 1),
                    )
                    bar.update(self.done(step, now), step=step, loss=loss, rate=speed)
                    log_from, since, recent = step, elapsed(), torch.zeros((), device=self.device)
                if self.measure is not None and (last or (config.eval_every and step % config.eval_every == 0)):
                    with self.autocast:
                        eval_loss = self.measure()
                    metrics.write(step=step, tokens=self.tokens(step), eval_loss=eval_loss)
                if config.save_every and step % config.save_every == 0:
                    checkpoint, saved_step = self.save(step, elapsed()), step
            if saved_step != step:
                checkpoint = self.save(step, elapsed())
            seconds, stopped = elapsed(), stop.is_set()
        plot_loss(read_metrics(self.out / "metrics.jsonl"), self.out / "loss.png")
        self.model.eval()
        return TrainResult(step, self.tokens(step), seconds, loss, None if stopped else eval_loss, stopped, checkpoint)

    def tokens(self, step: int) -> int:
        return self.batches.tokens_before(step * self.config.gradient_accumulation)

    def left(self, step: int, elapsed: float) -> bool:
        return self.done(step, elapsed) < 1

    def done(self, step: int, elapsed: float) -> float:
        by_time = elapsed / self.config.max_seconds if self.config.max_seconds else 0.0
        return max(step / self.config.max_steps, by_time)

    def step(self, step: int, rate: float, interrupted: threading.Event) -> Tensor | None:
        """Take one optimizer step and return its mean loss, or None, with nothing changed, where Ctrl-C came first."""
        config = self.config
        total = torch.zeros((), device=self.device)
        for part in range(config.gradient_accumulation):
            if interrupted.is_set():
                self.optimizer.zero_grad(set_to_none=True)
                return None
            arrays = self.batches.inputs_and_labels(step * config.gradient_accumulation + part)
            ids, labels = (self.on_device(torch.from_numpy(array)) for array in arrays)
            with self.autocast:
                loss = self.forward(ids, labels=labels).loss / config.gradient_accumulation
            loss.backward()
            total += loss.detach()
        if config.gradient_clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, config.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def on_device(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def save(self, step: int, elapsed: float) -> Path:
        return save_checkpoint(self.out, self.model, self.optimizer, TrainState(step, elapsed, self.config.to_dict()))


def _check_same_run(checkpoint: Path, config: TrainConfig, state: TrainState) -> None:
    now = config.to_dict()
    changed = [
        f"{field} was {state.settings.get(field)!r} and is {now[field]!r}"
        for field in _FIXED
        if state.settings.get(field) != now[field]
    ]
    if changed:
        raise ValueError(f"{checkpoint}: cannot resume: {'; '.join(changed)}")


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets; a second Ctrl-C raises KeyboardInterrupt as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    usual = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, stop)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, usual)
