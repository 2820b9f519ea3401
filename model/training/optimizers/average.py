"""An exponential moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

KEY = "ema"


class WeightAverage:
    """The moving average of the trained weights, float32, in the state of their optimizer, so that it is saved with it.

    After step `t` the average moves by `1 - min(decay, (1 + t) / (10 + t))` towards the weights.

    Source: Polyak and Juditsky 1992, doi:10.1137/0330046; the ramp is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.optimizer, self.decay = optimizer, decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after `step` steps; the first call copies them."""
        moved = 1 - min(self.decay, (1 + step) / (10 + step))
        for weight in self._weights():
            state = self.optimizer.state[weight]
            if KEY in state:
                state[KEY].lerp_(weight.float(), moved)
            else:
                state[KEY] = weight.float().clone()

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Let the weights hold the average, and their own values again afterwards."""
        before = [weight.detach().clone() for weight in self._weights()]
        try:
            self.load()
            yield
        finally:
            with torch.no_grad():
                for weight, values in zip(self._weights(), before, strict=True):
                    weight.copy_(values)

    @torch.no_grad()
    def load(self) -> None:
        """Copy the average into the weights."""
        for weight in self._weights():
            average: Tensor | None = self.optimizer.state[weight].get(KEY)
            if average is not None:
                weight.copy_(average)

    def _weights(self) -> Iterator[nn.Parameter]:
        for group in self.optimizer.param_groups:
            yield from group["params"]
