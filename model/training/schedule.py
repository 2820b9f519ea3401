"""The learning rate of each step."""

from __future__ import annotations

import math

from bpe_llama.model.training.config import TrainConfig


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
