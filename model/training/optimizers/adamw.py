"""AdamW: weight decay on matrices only; in three forms, by the dtype of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as update

from bpe_llama.model.training.optimizers.stochastic import EachWeight, StochasticAdamW


def adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    master_weights: bool = False,
    seed: int = 0,
) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters of `model`.

    Parameters of two or more dimensions decay; biases and the weights of norms do not. If some are bfloat16, the
    optimizer is `MasterAdamW` with `master_weights` and else `StochasticAdamW`; `seed` is that of its rounding.

    Raises:
        ValueError: If nothing in the model is trainable.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.

    Example:
        >>> optimizer = adamw(nn.Linear(4, 2), learning_rate=1e-3)
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(1, 0.1), (1, 0.0)]
    """
    parameters = trainable(model)
    groups = decay_groups(parameters, weight_decay)
    if any(parameter.dtype == torch.bfloat16 for parameter in parameters):
        if master_weights:
            return MasterAdamW(groups, lr=learning_rate, betas=betas)
        return StochasticAdamW(groups, lr=learning_rate, betas=betas, seed=seed)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=can_fuse(parameters))


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters.

    Raises:
        ValueError: If there is none.
    """
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        raise ValueError("the model has no trainable parameter")
    return found


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups: those of two or more dimensions decay by `weight_decay`, the others do not."""
    parameters = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in parameters if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def can_fuse(parameters: Iterable[nn.Parameter]) -> bool:
    """Return whether torch updates these parameters by one kernel."""
    return all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)


class MasterAdamW(EachWeight):
    """AdamW for bfloat16 weights: it keeps a float32 copy of each and float32 moments.

    Forward and backward pass read bfloat16 weights without a conversion; small updates are not lost. A parameter takes
    16 bytes with its gradient.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.1.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        >>> optimizer = MasterAdamW([weight], lr=1e-3)
        >>> for _ in range(4):  # a single step of 0.001 would be lost in bfloat16
        ...     weight.grad = torch.ones_like(weight)
        ...     optimizer.step()
        >>> weight.tolist()
        [0.99609375, 0.99609375]
    """

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any], place: int) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["master"] = weight.float().clone()
            state["exp_avg"] = torch.zeros_like(state["master"])
            state["exp_avg_sq"] = torch.zeros_like(state["master"])
        update(
            [state["master"]],
            [gradient.float()],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=can_fuse([weight]),  # type: ignore[list-item]
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        weight.copy_(state["master"])
