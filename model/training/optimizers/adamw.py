"""AdamW with weight decay on matrices only, and an optimizer's state as named tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bpe_llama.model.training.optimizers.stochastic import StochasticAdamW


def adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    seed: int = 0,
) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters of `model`: torch's, or `StochasticAdamW` if some are bfloat16.

    Parameters of two or more dimensions decay; biases and the weights of norms do not. `seed` is that of the rounding.

    Raises:
        ValueError: If nothing in the model is trainable.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.

    Example:
        >>> optimizer = adamw(nn.Linear(4, 2), learning_rate=1e-3)
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(1, 0.1), (1, 0.0)]
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("the model has no trainable parameter")
    groups = [
        {"params": [parameter for parameter in trainable if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if any(parameter.dtype == torch.bfloat16 for parameter in trainable):
        return StochasticAdamW(groups, lr=learning_rate, betas=betas, seed=seed)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trainable)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as tensors named `parameter.quantity`, such as `lm_head.weight.exp_avg`."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load the tensors that `optimizer_tensors` returned.

    Raises:
        ValueError: If a tensor is missing, unknown or of another shape; nothing is changed then.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    state: dict[nn.Parameter, dict[str, Tensor]] = {parameter: {} for parameter in trainable.values()}
    wrong: list[str] = []
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        parameter = trainable.get(name)
        if parameter is None or (key != "step" and tensor.shape != parameter.shape):
            wrong.append(full_name)
        else:
            # Fused AdamW needs the step count on the parameter's device.
            state[parameter][key] = tensor.to(parameter.device)
    wrong += [f"{name} (absent)" for name, parameter in trainable.items() if len(state[parameter]) != 3]
    if wrong:
        raise ValueError(f"the optimizer state does not fit the model: {', '.join(sorted(wrong))}")
    for parameter, values in state.items():
        optimizer.state[parameter] = values
