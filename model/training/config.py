"""The settings of a training run: one frozen dataclass, checked when it is made."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run; the defaults suit a small model on one machine.

    A step processes `batch_size * gradient_accumulation` windows of `sequence_length` tokens.

    Attributes:
        max_steps: Optimizer steps in the whole run, resumed parts included.
        max_seconds: Stop after this much training time as well; the learning rate then falls with whichever of steps
            and time is further on. A run limited by time is not repeatable bit for bit.
        sequence_length: Tokens a window.
        batch_size: Windows a forward pass.
        gradient_accumulation: Forward passes a step.
        learning_rate: Peak, reached after warm-up.
        min_learning_rate_ratio: What is left of the peak at the end of the cosine.
        warmup_steps: Steps of linear warm-up.
        weight_decay: Applied to matrices and embeddings, not to norms and biases.
        betas: AdamW's.
        gradient_clip: Largest norm of the whole gradient; 0 turns clipping off.
        max_skipped_steps: Steps in a row that may be skipped because their loss or gradient is not finite; one more
            ends the run.
        eval_fraction: Share of the token file, its end, kept for evaluation where no other file is given.
        eval_every: Steps between evaluations, 0 for one at the end only.
        eval_windows: Windows an evaluation looks at, at most.
        save_every: Steps between checkpoints, 0 for one at the end only; none is written of a step that was skipped.
        log_every: Steps between lines of `metrics.jsonl`.
        seed: Orders the windows. The model's own seed is the model's business.
        dtype: The dtype of arithmetic: `"float32"`, `"bfloat16"` (autocast) or `"auto"`: bfloat16 on CUDA and with
            weights in bfloat16.
        weights_dtype: The dtype of the trained weights and of the optimizer's moments: `"float32"` (master weights), or
            `"bfloat16"`, rounded stochastically: half the memory.
        device: `"auto"` (CUDA where there is one), `"cpu"`, `"cuda"`, ...
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
        """Refuse values no run can use, naming the field."""
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
        """Tokens an optimizer step processes."""
        return self.batch_size * self.gradient_accumulation * self.sequence_length

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dictionary that JSON can hold."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Return the settings `to_dict` wrote.

        Raises:
            ValueError: If a key is unknown.
        """
        unknown = sorted(values.keys() - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown training settings: {', '.join(unknown)}")
        return cls(**{**values, "betas": tuple(values.get("betas", cls.betas))})


def learning_rate_at(config: TrainConfig, step: int, elapsed: float = 0.0) -> float:
    """Return the learning rate of `step` (from 0): linear warm-up, then half a cosine down to the floor.

    Args:
        config: The run's settings.
        step: Optimizer steps already taken.
        elapsed: Seconds trained so far; looked at only where `config.max_seconds` is set.

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
    floor = config.min_learning_rate_ratio
    return config.learning_rate * (floor + (1 - floor) * cosine)
