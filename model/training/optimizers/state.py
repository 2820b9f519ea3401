"""Makes the optimizer of a run; its state as named tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bpe_llama.model.training.config import TrainConfig
from bpe_llama.model.training.optimizers.adamw import MasterAdamW, adamw, trainable
from bpe_llama.model.training.optimizers.average import KEY
from bpe_llama.model.training.optimizers.muon import MuonAdamW


def optimizer_for(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer that `config` names, over the trainable parameters of `model`."""
    options: dict[str, Any] = {name: getattr(config, name) for name in ("learning_rate", "betas", "weight_decay")}
    if config.optimizer == "muon":
        return MuonAdamW(model, **options)
    return adamw(model, **options, master_weights=config.master_weights, seed=config.seed)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as tensors named `parameter.quantity`, such as `lm_head.weight.exp_avg`."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load the tensors that `optimizer_tensors` returned.

    A `ValueError` names tensors that are missing, unknown or of another shape; nothing is changed then.
    """
    parameters = trainable(model)
    state: dict[nn.Parameter, dict[str, Tensor]] = {parameter: {} for parameter in parameters.values()}
    wrong: list[str] = []
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        parameter = parameters.get(name)
        if parameter is None or (key != "step" and tensor.shape != parameter.shape):
            wrong.append(full_name)
        else:
            # Fused AdamW needs the step count on the parameter's device.
            state[parameter][key] = tensor.to(parameter.device)
    for name, parameter in parameters.items():
        expected, found = _expected_keys(optimizer, parameter), state[parameter].keys()
        wrong += [f"{name}.{key} (absent)" for key in expected - found]
        wrong += [f"{name}.{key}" for key in found - expected - {KEY}]
    if wrong:
        raise ValueError(f"the optimizer state does not fit the model: {', '.join(sorted(wrong)[:8])}")
    for parameter, values in state.items():
        optimizer.state[parameter] = values


def _expected_keys(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> set[str]:
    if isinstance(optimizer, MuonAdamW) and optimizer.is_hidden(parameter):
        return {"momentum_buffer"}
    return {"step", "exp_avg", "exp_avg_sq"} | ({"master"} if isinstance(optimizer, MasterAdamW) else set())
