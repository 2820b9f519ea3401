"""The learning rate of each step."""

from __future__ import annotations

import math

from bpe_llama.model.training.config import TrainConfig


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
