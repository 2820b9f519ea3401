"""Makes the optimizer of a run; its state as named tensors, in which a moving average of the weights is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bpe_llama.model.training.config import TrainConfig
from bpe_llama.model.training.optimizers.adamw import (
    MasterAdamW,
    StochasticAdamW,
    can_fuse,
    decay_groups,
    trainable,
)
from bpe_llama.model.training.optimizers.muon import MuonAdamW

_AVERAGE = "ema"


def optimizer_for(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer that `config` names, over the trainable parameters of `model`; there must be one.

    Parameters of two or more dimensions decay; biases and the weights of norms do not.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    if config.optimizer == "muon":
        return MuonAdamW(model, config)
    parameters = list(trainable(model).values())
    groups, rate, betas = decay_groups(parameters, config.weight_decay), config.learning_rate, config.betas
    if not any(parameter.dtype == torch.bfloat16 for parameter in parameters):
        return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=can_fuse(parameters))
    if config.master_weights:
        return MasterAdamW(groups, rate, betas)
    return StochasticAdamW(groups, rate, betas=betas, seed=config.seed)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as tensors named `parameter.quantity`, such as `lm_head.weight.exp_avg`."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load the tensors that `optimizer_tensors` returned.

    A parameter that no step has updated has no state. A `ValueError` names tensors that are unknown, of
    another shape, or missing while others of the parameter are there; nothing is changed then.
    """
    parameters, updated = trainable(model), {name.rpartition(".")[0] for name in tensors}
    keys = {name: _expected_keys(optimizer, weight) for name, weight in parameters.items() if name in updated}
    expected = {f"{name}.{key}" for name in keys for key in keys[name]}
    known = expected | {f"{name}.{_AVERAGE}" for name in parameters}
    state: dict[nn.Parameter, dict[str, Tensor]] = {parameter: {} for parameter in parameters.values()}
    wrong = [f"{name} (absent)" for name in expected - tensors.keys()]
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        if full_name not in known or (key != "step" and tensor.shape != parameters[name].shape):
            wrong.append(full_name)
        else:
            # Fused AdamW needs the step count on the parameter's device.
            state[parameters[name]][key] = tensor.to(parameters[name].device)
    if wrong:
        raise ValueError(f"the optimizer state does not fit the model: {', '.join(sorted(wrong)[:8])}")
    for parameter, values in state.items():
        optimizer.state[parameter] = values


def _expected_keys(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> set[str]:
    if isinstance(optimizer, MuonAdamW) and optimizer.is_hidden(parameter):
        return {"momentum_buffer"}
    return {"step", "exp_avg", "exp_avg_sq"} | ({"master"} if isinstance(optimizer, MasterAdamW) else set())


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
            if not state:  # never updated: its average is itself, and AdamW needs to find no state at its first update
                continue
            if _AVERAGE in state:
                state[_AVERAGE].lerp_(weight.float(), moved)
            else:
                state[_AVERAGE] = weight.float().clone()

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
            average: Tensor | None = self.optimizer.state[weight].get(_AVERAGE)
            if average is not None:
                weight.copy_(average)

    def _weights(self) -> Iterator[nn.Parameter]:
        for group in self.optimizer.param_groups:
            yield from group["params"]
