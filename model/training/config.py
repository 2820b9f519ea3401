"""The options of a training run: one frozen dataclass, checked when it is constructed."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainConfig:
    """The options of a run; the defaults suit a small model on one machine.

    An optimizer step takes `gradient_accumulation` micro-batches of `batch_size` sequences of `sequence_length` tokens.

    Attributes:
        max_steps: Optimizer steps in the whole run, resumed parts included.
        max_seconds: Stop after this much training time as well; the learning rate then follows the larger of the
            fractions of steps and of time. A run limited by time is not reproducible bit for bit.
        sequence_length: Tokens per sequence.
        batch_size: Sequences per micro-batch (one forward and backward pass).
        gradient_accumulation: Micro-batches per optimizer step.
        learning_rate: Peak, reached after warm-up.
        min_learning_rate_ratio: The final learning rate as a fraction of the peak.
        warmup_steps: Steps of linear warm-up.
        weight_decay: Applied to matrices and embeddings, not to norms and biases.
        betas: AdamW's.
        gradient_clip: Largest norm of the whole gradient; 0 turns clipping off.
        max_skipped_steps: Largest number of consecutive steps that are skipped because their loss or gradient is not
            finite; one more ends the run.
        eval_fraction: Fraction of the data, at its end, that is held out for evaluation unless a file is given for it.
        eval_every: Steps between evaluations, 0 for one at the end only.
        eval_windows: Largest number of held-out sequences per evaluation.
        save_every: Steps between checkpoints, 0 for one at the end only; a skipped step saves none.
        log_every: Steps between lines of `metrics.jsonl`.
        seed: Of the order of the sequences and of dropout, not of the model's initial weights.
        dtype: The dtype of the forward and backward pass: `"float32"`, `"bfloat16"` (autocast) or `"auto"`: bfloat16 on
            CUDA and for weights in bfloat16.
        weights_dtype: The dtype of the trained weights and of the optimizer's moments: `"float32"` (master weights), or
            `"bfloat16"` with stochastic rounding: half the memory.
        device: `"auto"` (CUDA if available), `"cpu"`, `"cuda"`, ...
        compile: Run the model through `torch.compile`.
    """

    max_steps: int = 1000
    max_seconds: float | None = None
    sequence_length: int = 256
    batch_size: int = 16
    gradient_accumulation: int = 1
    learning_rate: float = 1e-3
    min_learning_rate_ratio: float = 0.1
    warmup_steps: int = 50
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    gradient_clip: float = 1.0
    max_skipped_steps: int = 5
    eval_fraction: float = 0.01
    eval_every: int = 0
    eval_windows: int = 64
    save_every: int = 0
    log_every: int = 10
    seed: int = 0
    dtype: str = "auto"
    weights_dtype: str = "float32"
    device: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        """Check each field; the error names it."""
        for field, least in (
            ("max_steps", 1),
            ("sequence_length", 2),
            ("batch_size", 1),
            ("gradient_accumulation", 1),
            ("warmup_steps", 0),
            ("weight_decay", 0),
            ("gradient_clip", 0),
            ("max_skipped_steps", 0),
            ("eval_every", 0),
            ("eval_windows", 1),
            ("save_every", 0),
            ("log_every", 1),
            ("seed", 0),
        ):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"{field} is {value!r}, expected at least {least}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate!r}, expected a positive number")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds is {self.max_seconds!r}, expected a positive number or None")
        for field in ("min_learning_rate_ratio", "eval_fraction"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} is {getattr(self, field)!r}, expected 0 to 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas!r}, expected two numbers from 0 up to 1")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}, expected auto, float32 or bfloat16")
        if self.weights_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"weights_dtype is {self.weights_dtype!r}, expected float32 or bfloat16")
        if self.weights_dtype == "bfloat16" and self.dtype == "float32":
            raise ValueError("dtype is 'float32' and weights_dtype 'bfloat16', expected auto or bfloat16 as the dtype")

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step."""
        return self.batch_size * self.gradient_accumulation * self.sequence_length

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Return the config that `to_dict` wrote.

        Raises:
            ValueError: If a key is unknown.
        """
        unknown = sorted(values.keys() - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown training options: {', '.join(unknown)}")
        return cls(**{**values, "betas": tuple(values.get("betas", cls.betas))})


def with_epochs(config: TrainConfig, epochs: float | None, rows: float) -> TrainConfig:
    """Return the config with the number of steps that `epochs` passes over `rows` rows take; None changes nothing.

    Raises:
        ValueError: If `epochs` is not a positive number.

    Example:
        >>> with_epochs(TrainConfig(batch_size=4, gradient_accumulation=2), 3, rows=20).max_steps
        8
    """
    if epochs is None:
        return config
    if not (math.isfinite(epochs) and epochs > 0):
        raise ValueError(f"epochs is {epochs}, expected a positive number")
    steps = max(1, math.ceil(epochs * rows / (config.batch_size * config.gradient_accumulation)))
    return dataclasses.replace(config, max_steps=steps, warmup_steps=min(config.warmup_steps, steps))


def learning_rate_at(config: TrainConfig, step: int, elapsed: float = 0.0) -> float:
    """Return the learning rate of `step` (from 0): linear warm-up, then cosine decay to the final rate.

    Args:
        config: The run's options.
        step: Optimizer steps already taken.
        elapsed: Seconds trained so far; used only if `config.max_seconds` is set.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, without restarts.

    Example:
        >>> config = TrainConfig(max_steps=100, warmup_steps=10, learning_rate=1.0, min_learning_rate_ratio=0.0)
        >>> [round(learning_rate_at(config, step), 3) for step in (0, 9, 10, 55, 100)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    if config.max_seconds is not None:
        done = max(done, elapsed / config.max_seconds)
    cosine = (1 + math.cos(math.pi * min(1.0, done))) / 2
    final = config.min_learning_rate_ratio
    return config.learning_rate * (final + (1 - final) * cosine)
