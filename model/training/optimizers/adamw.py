"""AdamW for bfloat16 weights in two forms; which parameters are trained, which decay, what a rank holds of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as update

_CHUNK = 1 << 23  # elements per block of an update


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name; a `ValueError` says that there is none."""
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise ValueError("the model has no trainable parameter")
    return found


def decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups: those of two or more dimensions decay by `weight_decay`, the others do not."""
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in parameters if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def can_fuse(parameters: list[nn.Parameter]) -> bool:
    """Return whether torch updates these parameters by one kernel."""
    return all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor (DTensor, by FSDP2) that this rank holds, without a copy; others as they are.

    Sharded is what has a `to_local`: the import of DTensor takes a second.
    """
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class EachWeight(torch.optim.Optimizer):
    """An AdamW for bfloat16 weights; a subclass says how one of them is updated."""

    def __init__(
        self, parameters: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step over every parameter that has a gradient."""
        check_no_closure(closure)
        weights = ((weight, group) for group in self.param_groups for weight in group["params"])
        for place, (weight, group) in enumerate(weights, start=1):
            if weight.grad is not None:
                self._update(weight, weight.grad, group, place)

    def _update(self, weight: nn.Parameter, gradient: Tensor, group: dict[str, Any], place: int) -> None:
        raise NotImplementedError


def check_no_closure(closure: object) -> None:
    """Raise `ValueError` if an optimizer is given a closure that computes gradients."""
    if closure is not None:
        raise ValueError("a closure is given; expected None, with the gradients already computed")


class MasterAdamW(EachWeight):
    """AdamW for bfloat16 weights: it keeps a float32 copy of each and float32 moments.

    Forward and backward pass read bfloat16 weights without a conversion; small updates are not lost. A parameter takes
    16 bytes with its gradient.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.1.
    """

    def _update(self, weight: nn.Parameter, gradient: Tensor, group: dict[str, Any], place: int) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["master"] = weight.float().clone()
            state["exp_avg"] = torch.zeros_like(state["master"])
            state["exp_avg_sq"] = torch.zeros_like(state["master"])
        master, mean, square, step = (state[name] for name in ("master", "exp_avg", "exp_avg_sq", "step"))
        options: dict[str, Any] = {name: group[name] for name in ("lr", "weight_decay", "eps")}
        options |= {"beta1": group["betas"][0], "beta2": group["betas"][1], "fused": can_fuse([weight])}
        update([master], [gradient.float()], [mean], [square], [], [step], amsgrad=False, maximize=False, **options)
        weight.copy_(master)


class StochasticAdamW(EachWeight):
    """AdamW whose weights and moments are bfloat16, rounded stochastically; arithmetic is float32.

    A parameter takes 8 bytes with its gradient and moments, instead of 16. The random bits depend on seed, step and
    parameter alone, so a resumed run draws the same ones, and so do the ranks of DDP; with FSDP also on the rank.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; Zamirai et al. 2020, arXiv:2010.06192, section 4.
    """

    def __init__(self, parameters: Iterable[Any], lr: float, *, seed: int = 0, **options: Any) -> None:
        super().__init__(parameters, lr, **options)
        self.seed = seed

    def _update(self, weight: nn.Parameter, gradient: Tensor, group: dict[str, Any], place: int) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        state["step"] += 1
        step = int(state["step"])
        mesh = getattr(weight, "device_mesh", None)  # of a sharded weight, each rank rounds a part of its own
        seed = (self.seed * 1_000_003 + step) * 100_003 + place + (0 if mesh is None else mesh.get_rank() << 48)
        generator = torch.Generator(weight.device).manual_seed(seed)
        first, second = group["betas"]
        tensors = [local(tensor) for tensor in (weight, gradient, state["exp_avg"], state["exp_avg_sq"])]
        # A block of rows at a time, which bounds the memory of the float32 copies.
        rows = max(1, _CHUNK * len(tensors[0]) // max(1, tensors[0].numel()))
        for weights, gradients, means, squares in zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True):
            gradients = gradients.float()
            mean = means.float().lerp_(gradients, 1 - first)
            square = squares.float().mul_(second).addcmul_(gradients, gradients, value=1 - second)
            means.copy_(round_stochastically(mean, generator))
            squares.copy_(round_stochastically(square, generator))
            divisor = square.div_(1 - second**step).sqrt_().add_(group["eps"])
            moved = weights.float().mul_(1 - group["lr"] * group["weight_decay"])
            moved.addcdiv_(mean, divisor, value=-group["lr"] / (1 - first**step))
            weights.copy_(round_stochastically(moved, generator))


# bfloat16 keeps 8 significant bits. Rounding to nearest always loses a step of a thousandth of a weight; stochastic
# rounding takes it with the probability that makes the expected value exact.
def round_stochastically(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return float32 values without NaN as bfloat16, rounded up or down at random, to the nearer neighbour more often.

    The expected value of the result is the input; a value that bfloat16 represents exactly does not change.

    Source: Gupta et al. 2015, arXiv:1502.02551, section 3.

    Example:
        >>> third = torch.full((10_000,), 1 / 3)
        >>> drawn = round_stochastically(third, torch.Generator().manual_seed(0)).float()
        >>> sorted(set(drawn.tolist())), abs(drawn.mean() - 1 / 3).item() < 1e-4
        ([0.33203125, 0.333984375], True)
    """
    # The sum carries into the upper 16 bits with probability (lower 16 bits) / 2**16.
    bits = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    bits.add_(values.view(torch.int32)).bitwise_and_(-(1 << 16))
    return bits.view(torch.float32).to(torch.bfloat16)
