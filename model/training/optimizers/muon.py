"""Muon for the matrices of the layers; AdamW for embeddings, head, norms, biases, and experts in one tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from bpe_llama.model.training.config import TrainConfig
from bpe_llama.model.training.optimizers.adamw import can_fuse, check_no_closure, decay_groups, trainable

_NOT_HIDDEN = ("embed_tokens", "lm_head", "score")


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon and AdamW as one optimizer, with one learning rate and one state.

    Muon makes each update of a matrix nearly orthogonal, so that no direction dominates. Its updates are scaled to the
    root mean square of AdamW's, so that a learning rate for AdamW suits both.

    Cost: each step multiplies matrices of a layer's size 15 times, in bfloat16; 12 bytes a parameter with its gradient.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; Liu et al. 2025, arXiv:2502.16982 (scale).
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        hidden: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, weight in trainable(model).items():
            other = any(part in _NOT_HIDDEN or part.endswith("norm") for part in name.split("."))
            (hidden if weight.dim() == 2 and not other else others).append(weight)
        self._parts: list[torch.optim.Optimizer] = []
        rate, decay = config.learning_rate, config.weight_decay
        if hidden:
            if not hasattr(torch.optim, "Muon"):
                raise ImportError(f"optimizer 'muon' needs torch 2.9 or later; this is torch {torch.__version__}")
            muon = torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            self._parts.append(muon)
        if others:
            groups = decay_groups(others, decay)
            self._parts.append(torch.optim.AdamW(groups, lr=rate, betas=config.betas, fused=can_fuse(others)))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        # The parts use the groups and the state of this optimizer.
        rest = list(self.param_groups)
        for part in self._parts:
            part.param_groups, rest = rest[: len(part.param_groups)], rest[len(part.param_groups) :]
            part.state = self.state

    def is_hidden(self, parameter: nn.Parameter) -> bool:
        """Return whether Muon updates this parameter."""
        groups = (group["params"] for group in self.param_groups if "momentum" in group)
        return any(parameter is other for group in groups for other in group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step over every parameter that has a gradient."""
        check_no_closure(closure)
        for part in self._parts:
            part.step()
