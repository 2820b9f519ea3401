"""What optimizers of ours share; AdamW for bfloat16 weights, which are rounded stochastically."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bpe_llama.model.training.optimizers.sharded import local

_CHUNK = 1 << 23  # elements per block of an update


# bfloat16 keeps 8 significant bits. Rounding to nearest always loses a step of a thousandth of a weight; stochastic
# rounding takes it with the probability that makes the expected value exact.
def round_stochastically(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return float32 values as bfloat16, each rounded up or down at random, to the nearer neighbour more often.

    The expected value of the result is the input; a value that bfloat16 represents exactly does not change.

    Args:
        values: float32, of any shape, without NaN.
        generator: Source of the random bits, on the same device.

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

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any], place: int) -> None:
        raise NotImplementedError


def check_no_closure(closure: object) -> None:
    """Raise `ValueError` if an optimizer is given a closure that computes gradients."""
    if closure is not None:
        raise ValueError("a closure is given; expected None, with the gradients already computed")


class StochasticAdamW(EachWeight):
    """AdamW whose weights and moments are bfloat16, rounded stochastically; arithmetic is float32.

    A parameter takes 8 bytes with its gradient and moments, instead of 16. The random bits depend on seed, step and
    parameter alone, so a resumed run draws the same ones, and so do the ranks of DDP; with FSDP also on the rank.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; Zamirai et al. 2020, arXiv:2010.06192, section 4.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        >>> optimizer = StochasticAdamW([weight], lr=0.5)
        >>> weight.grad = torch.ones_like(weight)
        >>> optimizer.step()
        >>> weight.tolist()
        [0.5, 0.5, 0.5, 0.5]
    """

    def __init__(self, parameters: Iterable[Any], lr: float, *, seed: int = 0, **options: Any) -> None:
        super().__init__(parameters, lr, **options)
        self.seed = seed

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any], place: int) -> None:
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
