"""Mixture of experts: a router sends each token to a few of several feed-forward blocks.

Shapes: ``B`` batch, ``T`` length, ``M`` tokens (B * T), ``D`` hidden_size, ``E`` experts, ``C`` experts per token,
``P`` pairs of a token and an expert (M * C).
Module names are those of a Mixtral checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.layers.matmul.grouped import grouped_linear


class Expert(nn.Module):
    """SwiGLU: ``w2(silu(w1(x)) * w3(x))``."""

    matrices: ClassVar[tuple[str, str, str]] = ("w1", "w3", "w2")
    """The names of the gate, up and down projections."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, x_MD: Tensor) -> Tensor:
        """Return the output, same shape and dtype as the input."""
        return self.w2(functional.silu(self.w1(x_MD)) * self.w3(x_MD))


class MixtureOfExperts(nn.Module):
    """Top-k routing over SwiGLU experts; each expert processes its tokens as one batch.

    Under `torch.compile` the products of all experts are one operation (`grouped_linear`), without a graph break.
    Experts with adapters or quantized weights then process all tokens each, and a mask selects the results.

    The router's logits of the last forward pass are in ``router_logits`` (M, E) for `routing_loss`.

    Source: Jiang et al. 2024, arXiv:2401.04088, section 2.1.
    """

    expert_class: ClassVar[type[Any]] = Expert
    has_routing_loss: ClassVar[bool] = True
    """Whether `routing_loss` counts the router's logits."""
    experts: Any
    """A list of ``expert_class``, unless a family has another module; its length is the number of experts."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.per_token = config.num_experts_per_tok
        self.normalized = True  # the weights of a token's experts add up to 1
        experts = config.num_local_experts or 1
        self.gate = nn.Linear(config.hidden_size, experts, bias=False)
        self.experts = nn.ModuleList(self.expert_class(config) for _ in range(experts))
        self.router_logits: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "router_logits": None}  # a copy has made no pass, and torch copies no graph

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts' outputs, (B, T, D)."""
        x_MD = x_BTD.flatten(0, 1)
        logits_ME = self.gate(x_MD)
        self.router_logits = logits_ME
        weights_MC, chosen_MC = self.choose(logits_ME)
        weights_MC = weights_MC.to(x_MD.dtype)

        # Sort the (token, expert) pairs by expert, so that each expert's tokens are contiguous.
        order = chosen_MC.flatten().argsort(stable=True)
        tokens = order // self.per_token
        if torch.compiler.is_compiling():
            outputs = self._grouped(x_MD[tokens], chosen_MC.flatten()[order])
        else:
            counts = chosen_MC.flatten().bincount(minlength=len(self.experts)).tolist()
            # In training each expert has a gradient, if only of zeros: ranks and optimizers need one.
            used = [(expert, n) for expert, n in zip(self.experts, counts, strict=True) if n or self.training]
            parts = torch.split(x_MD[tokens], [n for _, n in used])
            outputs = torch.cat([expert(part) for (expert, _), part in zip(used, parts, strict=True)])
        weighted = outputs * weights_MC.flatten()[order, None]
        return torch.zeros_like(x_MD).index_add(0, tokens, weighted).view_as(x_BTD)

    def choose(self, logits_ME: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of each token's experts, float32 (M, C), and their numbers, int64 (M, C)."""
        weights_MC, chosen_MC = logits_ME.softmax(-1, dtype=torch.float32).topk(self.per_token, dim=-1)
        if self.normalized:
            weights_MC = weights_MC / weights_MC.sum(-1, keepdim=True)
        return weights_MC, chosen_MC

    def _grouped(self, x_PD: Tensor, chosen_P: Tensor) -> Tensor:
        """Return the output of each row's expert, (P, D), by operations whose shapes do not depend on the routing.

        Args:
            x_PD: Rows sorted by expert.
            chosen_P: The expert of each row.
        """
        sent_PE = chosen_P[:, None] == torch.arange(len(self.experts), device=x_PD.device)
        if any(type(layer) is not nn.Linear for expert in self.experts for layer in expert.children()):
            # The weights of adapted or quantized layers cannot be grouped: each expert processes all rows.
            out_PD = torch.zeros_like(x_PD)
            for i, expert in enumerate(self.experts):
                out_PD = torch.where(sent_PE[:, [i]], expert(x_PD), out_PD)
            return out_PD
        device = x_PD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_PD.dtype
        gate, up, down = (
            [getattr(expert, name).weight.to(dtype) for expert in self.experts] for name in self.expert_class.matrices
        )
        x_PD, counts_E = x_PD.to(dtype), sent_PE.sum(0)
        hidden_PI = functional.silu(grouped_linear(x_PD, gate, counts_E)) * grouped_linear(x_PD, up, counts_E)
        return grouped_linear(hidden_PI, down, counts_E)


SumOverRanks = Callable[[Tensor], Tensor]
"""Returns the sum of a tensor over the ranks that share a batch, without a gradient."""


def load_balancing_loss(
    router_logits: list[Tensor],
    per_token: int,
    attention_mask: Tensor | None = None,
    over_ranks: SumOverRanks | None = None,
) -> Tensor:
    """Return the load-balancing loss, a scalar: ``per_token`` if the experts' loads are equal, more if not.

    It is ``E * sum(f_e * p_e)`` with ``f_e`` the fraction of tokens that are sent to expert ``e`` and ``p_e`` its mean
    router probability, over all layers together, as in transformers.

    Args:
        router_logits: (M, E) of each layer.
        per_token: C, the experts of a token.
        attention_mask: (B, T), zero for padding, which is not counted.
        over_ranks: If the batch is split over ranks: the losses of all ranks then add up to that of the whole batch.

    Source: Fedus et al. 2021, arXiv:2101.03961, eq. 4, extended to several experts per token.
    """
    probs_ME = torch.cat(router_logits).float().softmax(-1)
    chosen_MC = probs_ME.topk(per_token, dim=-1).indices
    sent_ME = functional.one_hot(chosen_MC, probs_ME.shape[1]).sum(1).float()
    if attention_mask is None and over_ranks is None:
        return (sent_ME.mean(0) * probs_ME.mean(0)).sum() * probs_ME.shape[1]
    if attention_mask is None:
        counted_M1 = torch.ones_like(probs_ME[:, :1])
    else:
        counted_M1 = attention_mask.flatten().repeat(len(router_logits))[:, None].to(probs_ME)
    total, sent_E = counted_M1.sum(), (sent_ME * counted_M1).sum(0)
    if over_ranks is not None:
        total, sent_E = over_ranks(total), over_ranks(sent_E)
    fractions_E = sent_E / total
    return (fractions_E * (probs_ME * counted_M1).sum(0) / total).sum() * probs_ME.shape[1]


def router_z_loss(router_logits: list[Tensor], over_ranks: SumOverRanks | None = None) -> Tensor:
    """Return the router z-loss, a scalar: the mean squared logsumexp of the router logits, which keeps them small.

    Of a batch that is split over ranks, the losses add up to the mean.

    Source: Zoph et al. 2022, arXiv:2202.08906, eq. 5.
    """
    squares_M = torch.cat(router_logits).float().logsumexp(-1).square()
    return (
        squares_M.mean() if over_ranks is None else squares_M.sum() / over_ranks(squares_M.new_tensor(len(squares_M)))
    )


def routing_loss(
    model: nn.Module,
    config: LlamaConfig,
    attention_mask: Tensor | None = None,
    over_ranks: SumOverRanks | None = None,
) -> Tensor:
    """Return the routing losses of the last forward pass, a scalar, weighted by the config's coefficients.

    The loss of a model in training mode has them, as transformers' has with ``output_router_logits``; a coefficient of
    0 turns one off.
    """
    mixtures = [part for part in model.modules() if isinstance(part, MixtureOfExperts) and part.has_routing_loss]
    logits = [mixture.router_logits for mixture in mixtures if mixture.router_logits is not None]
    if not logits:
        return torch.zeros(())  # no layer has experts, or the family has no such loss
    loss = config.router_aux_loss_coef * load_balancing_loss(
        logits, config.num_experts_per_tok, attention_mask, over_ranks
    )
    if config.router_z_loss_coef:
        loss = loss + config.router_z_loss_coef * router_z_loss(logits, over_ranks)
    return loss
