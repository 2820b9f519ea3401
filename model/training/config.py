"""The options of a training run, a frozen dataclass that checks them, and the learning rate of each step by them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from bpe_llama._arguments import boolean, instance, integer, number, string, wrong
from bpe_llama._core import shown
from bpe_llama.model.config_values import is_one_of

CHOICES = {
    "packing": ("concatenate", "best_fit"),
    "schedule": ("cosine", "warmup_stable_decay", "constant"),
    "optimizer": ("adamw", "muon"),
    "dtype": ("auto", "float32", "bfloat16", "float8"),
    "weights_dtype": ("float32", "bfloat16"),
    "parallel": ("auto", "ddp", "fsdp"),
}
"""The values of the options that are names."""
LEAST = {
    "max_steps": 1,
    "sequence_length": 2,
    "batch_size": 1,
    "gradient_accumulation": 1,
    "warmup_steps": 0,
    "weight_decay": 0,
    "z_loss": 0,
    "checkpoint_activations": 0,
    "gradient_clip": 0,
    "max_skipped_steps": 0,
    "eval_every": 0,
    "eval_windows": 1,
    "save_total_limit": 0,
    "log_every": 1,
    "seed": 0,
}
"""The least value of the options that have no largest one."""
MAX_STEP_TOKENS = 1 << 31
"""The most tokens of an optimizer step."""
_OPTIONAL = {"max_seconds": float, "document_mask": bool, "save_every": int}  # may be None


@dataclass(frozen=True)
class TrainConfig:
    """The options of a run; the defaults suit a small model on one machine.

    An optimizer step takes `gradient_accumulation` micro-batches of `batch_size` sequences of `sequence_length` tokens.

    Attributes:
        max_steps: Optimizer steps in the whole run, resumed parts included.
        max_seconds: Stop after this much training time as well; the learning rate then follows the larger of the
            fractions of steps and of time. A run limited by time is not reproducible bit for bit.
        sequence_length: Tokens per sequence.
        batch_size: Sequences per micro-batch (one forward and backward pass), split over the ranks.
        gradient_accumulation: Micro-batches per optimizer step.
        packing: How documents become rows: `"concatenate"` cuts rows from the sequence of all documents, `"best_fit"`
            packs whole documents and cuts only those longer than a row.
        document_mask: Whether attention stays within documents, whose positions then restart; None: with best fit only.
        learning_rate: Peak, reached after warm-up.
        min_learning_rate_ratio: The final learning rate as a fraction of the peak.
        schedule: The learning rate after warm-up: `"cosine"` decay to the final rate; `"warmup_stable_decay"`, the peak
            and then linear decay over the last `decay_fraction` of the run; or `"constant"`.
        decay_fraction: The last part of a run, in which `"warmup_stable_decay"` decays.
        warmup_steps: Steps of linear warm-up.
        warmup_fraction: With `max_seconds`, warm-up takes at most this fraction of the run.
        optimizer: `"adamw"`, or `"muon"`: Muon for the matrices of the layers, AdamW for all else. Muon's updates are
            scaled to the size of AdamW's, so both use one learning rate.
        weight_decay: Applied to matrices and embeddings, not to norms and biases.
        betas: AdamW's.
        ema_decay: Decay per step of an exponential moving average of the weights, which is evaluated and which the
            model holds at the end; 0 for none.
        z_loss: Weight of the squared logarithm of the softmax's normalizer, which keeps logits small.
        label_smoothing: Probability that is spread evenly over the vocabulary in the targets.
        gradient_clip: Largest norm of the whole gradient; 0 turns clipping off.
        max_skipped_steps: Largest number of consecutive steps that are skipped because their loss or gradient is not
            finite; one more ends the run.
        eval_fraction: Fraction of the data, at its end, that is held out for evaluation unless a file is given for it.
        eval_every: Steps between evaluations, 0 for one at the end only.
        eval_windows: Largest number of held-out sequences per evaluation.
        save_every: Steps between checkpoints, 0 for one at the end only; None saves one after each 10 minutes of
            training. A skipped step saves none.
        save_total_limit: Checkpoints to keep, the newest ones; 0 keeps all. May change on a resume.
        log_every: Steps between lines of `metrics.jsonl`.
        seed: Of the order of the sequences and of dropout, not of the model's initial weights.
        dtype: The dtype of the forward and backward pass: `"float32"`, `"bfloat16"` (autocast), `"float8"` (products of
            the layers in float8, the rest in bfloat16; needs torchao and a GPU that multiplies float8) or `"auto"`:
            bfloat16 on CUDA and for weights in bfloat16.
        weights_dtype: The dtype of the trained weights and of the optimizer's moments: `"float32"`, or `"bfloat16"`
            with stochastic rounding: half the memory.
        master_weights: With weights in bfloat16: the optimizer keeps a float32 copy of the weights and float32 moments,
            instead of rounding stochastically.
        device: `"auto"` (CUDA if available), `"cpu"`, `"cuda"`, ...
        compile: Run the model through `torch.compile`; with `parallel="fsdp"` each layer.
        parallel: How the ranks of `torchrun` train together: `"ddp"` holds the whole model on each, `"fsdp"` shards
            weights, gradients and moments; `"auto"` is `"ddp"`. One process trains as usual. May change on a resume.
        checkpoint_activations: Recompute the activations of every `k`-th layer in the backward pass, 1 for all layers;
            0 stores all activations.
    """

    max_steps: int = 1000
    max_seconds: float | None = None
    sequence_length: int = 256
    batch_size: int = 16
    gradient_accumulation: int = 1
    packing: str = "concatenate"
    document_mask: bool | None = None
    learning_rate: float = 1e-3
    min_learning_rate_ratio: float = 0.1
    schedule: str = "cosine"
    decay_fraction: float = 0.2
    warmup_steps: int = 50
    warmup_fraction: float = 0.05
    optimizer: str = "adamw"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    gradient_clip: float = 1.0
    ema_decay: float = 0.0
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    max_skipped_steps: int = 5
    eval_fraction: float = 0.01
    eval_every: int = 0
    eval_windows: int = 64
    save_every: int | None = None
    save_total_limit: int = 1
    log_every: int = 10
    seed: int = 0
    dtype: str = "auto"
    weights_dtype: str = "float32"
    master_weights: bool = False
    device: str = "auto"
    compile: bool = False
    parallel: str = "auto"
    checkpoint_activations: int = 0

    def __post_init__(self) -> None:
        """Check each field; the error names it."""
        for option in dataclasses.fields(self):
            self._check_type(option.name, option.default)
        for field, least in LEAST.items():
            value = getattr(self, field)
            end, kind = (2**63, "less than 2**63") if isinstance(value, int) else (math.inf, "finite")
            self._expect(field, least <= value < end, f"at least {least} and {kind}")
        self._expect("save_every", self.save_every is None or self.save_every >= 0, "at least 0, or None")
        tokens = self.batch_size * self.sequence_length * self.gradient_accumulation
        if tokens > MAX_STEP_TOKENS:
            product = "batch_size * sequence_length * gradient_accumulation"
            raise ValueError(f"{product} is {shown(tokens)} tokens in a step, expected at most {MAX_STEP_TOKENS:,}")
        self._expect("learning_rate", 0 < self.learning_rate <= 1e30, "a positive number up to 1e30")  # in float32
        self._expect("max_seconds", self.max_seconds is None or self.max_seconds > 0, "a positive number or None")
        for field in ("min_learning_rate_ratio", "decay_fraction", "warmup_fraction", "eval_fraction"):
            self._expect(field, 0 <= getattr(self, field) <= 1, "0 to 1")
        for field in ("ema_decay", "label_smoothing"):
            self._expect(field, 0 <= getattr(self, field) < 1, "0 up to 1")
        in_range = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        self._expect("betas", in_range, "two numbers from 0 up to 1")
        for field, (*others, final) in CHOICES.items():
            self._expect(field, is_one_of(getattr(self, field), (*others, final)), f"{', '.join(others)} or {final}")
        if self.weights_dtype == "bfloat16" and self.dtype == "float32":
            raise ValueError("dtype is 'float32' and weights_dtype 'bfloat16', expected auto or bfloat16 as the dtype")
        if self.master_weights and self.weights_dtype == "float32":
            raise ValueError("master_weights is True and weights_dtype 'float32', expected weights_dtype bfloat16")
        if self.optimizer == "muon" and self.weights_dtype == "bfloat16":
            raise ValueError("optimizer is 'muon' and weights_dtype 'bfloat16', expected weights_dtype float32")

    def _expect(self, field: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{field} is {shown(getattr(self, field))}, expected {expected}")

    def _check_type(self, field: str, default: object) -> None:
        """Raise `TypeError` for a value of another type than the field's default; store NumPy's numbers as Python's."""
        value, kind = getattr(self, field), _OPTIONAL.get(field, type(default))
        if field in _OPTIONAL and value is None:
            return
        if kind is bool:
            value = boolean(field, value)
        elif kind is int:
            value = integer(field, value)
        elif kind is float:
            value = float(number(field, value))
        elif kind is tuple:
            if not isinstance(value, (tuple, list)):
                raise TypeError(wrong(field, value, "two numbers"))
            value = tuple(float(number(field, each)) for each in value)
        elif field not in CHOICES:
            string(field, value)
        object.__setattr__(self, field, value)  # the class is frozen

    @property
    def masks_documents(self) -> bool:
        """Return whether attention stays within documents."""
        return masks_documents(self.document_mask, self.packing)

    def uses_bfloat16(self, device_type: str) -> bool:
        """Return whether the forward and backward pass computes in bfloat16 on such a device."""
        return self.dtype in ("bfloat16", "float8") or (
            self.dtype == "auto" and (device_type == "cuda" or self.weights_dtype == "bfloat16")
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}


def masks_documents(document_mask: bool | None, packing: str) -> bool:
    """Return whether attention stays within documents, by the options of `TrainConfig`."""
    return packing == "best_fit" if document_mask is None else document_mask


def with_epochs(config: TrainConfig, epochs: float | None, rows: float) -> TrainConfig:
    """Return the config with the number of steps that `epochs` passes over `rows` rows take; None changes nothing.

    Example:
        >>> with_epochs(TrainConfig(batch_size=4, gradient_accumulation=2), 3, rows=20).max_steps
        8
    """
    if epochs is None:
        return config
    if not (math.isfinite(number("epochs", epochs)) and epochs > 0):
        raise ValueError(f"epochs is {epochs}, expected a positive number")
    steps = float(epochs) * rows / (config.batch_size * config.gradient_accumulation)
    if steps >= 1 << 63:
        raise ValueError(f"epochs is {shown(epochs)}, {steps:g} steps; expected fewer than 2**63")
    steps = max(1, math.ceil(steps))
    return dataclasses.replace(config, max_steps=steps, warmup_steps=min(config.warmup_steps, steps))


def learning_rate_at(config: TrainConfig, step: int, elapsed: float = 0.0) -> float:
    """Return the learning rate of `step` (from 0): linear warm-up, then what `config.schedule` names.

    Args:
        config: The run's options.
        step: Optimizer steps already taken.
        elapsed: Seconds trained so far; used only if `config.max_seconds` is set.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, without restarts (cosine); Hu et al. 2024,
    arXiv:2404.06395, section 4 (warm-up, stable, decay).

    Example:
        >>> config = TrainConfig(max_steps=100, warmup_steps=10, learning_rate=1.0, min_learning_rate_ratio=0.0)
        >>> [round(learning_rate_at(config, step), 3) for step in (0, 9, 10, 55, 100)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    instance("config", config, TrainConfig)
    step = integer("step", step, 0)
    by_time = elapsed / config.max_seconds if config.max_seconds is not None else 0.0
    warmed_up = (step + 1) / config.warmup_steps if step < config.warmup_steps else 1.0
    if config.max_seconds is not None and config.warmup_fraction * config.max_seconds:
        warmed_up = max(warmed_up, by_time / config.warmup_fraction)
    if warmed_up < 1:
        return config.learning_rate * warmed_up
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    done = min(1.0, max(done, by_time))
    final = config.min_learning_rate_ratio
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "cosine":
        left = (1 + math.cos(math.pi * done)) / 2
    else:
        left = min(1.0, (1 - done) / config.decay_fraction) if config.decay_fraction else 1.0
    return config.learning_rate * (final + (1 - final) * left)
