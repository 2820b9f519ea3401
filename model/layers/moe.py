"""Mixture of experts: each token is sent to a few of many feed-forward blocks.

Shapes: ``B`` batch, ``T`` length, ``M`` tokens (B * T), ``D`` hidden_size, ``E`` experts, ``C`` experts per token.
Names are those of a Mixtral checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.layers.grouped_mm import grouped_linear


class Expert(nn.Module):
    """One SwiGLU block: ``w1`` gates ``w3``, ``w2`` projects back."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, x_MD: Tensor) -> Tensor:
        """Return the block's output, same shape and dtype as its input."""
        out: Tensor = self.w2(functional.silu(self.w1(x_MD)) * self.w3(x_MD))
        return out


class MixtureOfExperts(nn.Module):
    """Top-k routing over SwiGLU experts; each expert computes all of its tokens in one product.

    Compiled by `torch.compile`, the experts' products are single operations (`grouped_linear`), without a graph break;
    experts with adapters or in another number format then compute all tokens each.

    The router's logits of the last forward pass stay in ``router_logits`` (M, E) for `routing_loss`.

    Source: Jiang et al. 2024, arXiv:2401.04088, section 2.1.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.per_token = config.num_experts_per_tok
        experts = config.num_local_experts or 1
        self.gate = nn.Linear(config.hidden_size, experts, bias=False)
        self.experts = nn.ModuleList(Expert(config) for _ in range(experts))
        self.router_logits: Tensor | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts' outputs, (B, T, D)."""
        x_MD = x_BTD.flatten(0, 1)
        logits_ME = self.gate(x_MD)
        self.router_logits = logits_ME
        weights_MC, chosen_MC = logits_ME.softmax(-1, dtype=torch.float32).topk(self.per_token, dim=-1)
        weights_MC = (weights_MC / weights_MC.sum(-1, keepdim=True)).to(x_MD.dtype)

        # Sort the (token, expert) pairs by expert, so that each expert's tokens lie together.
        order = chosen_MC.flatten().argsort(stable=True)
        tokens = order // self.per_token
        if torch.compiler.is_compiling():
            outputs = self._together(x_MD[tokens], chosen_MC.flatten()[order])
        else:
            counts = chosen_MC.flatten().bincount(minlength=len(self.experts)).tolist()
            grouped = torch.split(x_MD[tokens], counts)
            outputs = torch.cat([expert(part) for expert, part in zip(self.experts, grouped, strict=True) if len(part)])
        weighted = outputs * weights_MC.flatten()[order, None]
        return torch.zeros_like(x_MD).index_add(0, tokens, weighted).view_as(x_BTD)

    def _together(self, x_PD: Tensor, chosen_P: Tensor) -> Tensor:
        """Return what its expert makes of each row, (P, D), by operations whose shapes do not depend on the choice.

        Args:
            x_PD: Rows sorted by expert.
            chosen_P: The expert of each.
        """
        sent_PE = chosen_P[:, None] == torch.arange(len(self.experts), device=x_PD.device)
        if any(type(layer) is not nn.Linear for expert in self.experts for layer in expert.children()):
            # Adapters and other number formats are known to their own layers alone: each expert computes all rows.
            out_PD = torch.zeros_like(x_PD)
            for i, expert in enumerate(self.experts):
                out_PD = torch.where(sent_PE[:, [i]], expert(x_PD), out_PD)
            return out_PD
        kind = x_PD.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_PD.dtype
        w1, w2, w3 = (
            [getattr(expert, name).weight.to(dtype) for expert in self.experts] for name in ("w1", "w2", "w3")
        )
        x_PD, counts_E = x_PD.to(dtype), sent_PE.sum(0)
        hidden_PI = functional.silu(grouped_linear(x_PD, w1, counts_E)) * grouped_linear(x_PD, w3, counts_E)
        out: Tensor = grouped_linear(hidden_PI, w2, counts_E)
        return out


def load_balancing_loss(router_logits: list[Tensor], per_token: int, attention_mask: Tensor | None = None) -> Tensor:
    """Return how unevenly tokens are spread over the experts: ``per_token`` if evenly, more if not.

    For each expert, the share of tokens sent to it times the mean probability of being sent to it, summed and
    multiplied by the number of experts; all layers are taken together, as transformers does.

    Args:
        router_logits: (M, E) of each layer.
        per_token: Experts each token is sent to.
        attention_mask: (B, T), zero where a token is padding and does not count.

    Source: Fedus et al. 2021, arXiv:2101.03961, eq. 4, extended to several experts a token.
    """
    probs_ME = torch.cat(router_logits).float().softmax(-1)
    chosen_MC = probs_ME.topk(per_token, dim=-1).indices
    sent_ME = functional.one_hot(chosen_MC, probs_ME.shape[1]).sum(1).float()
    if attention_mask is None:
        return (sent_ME.mean(0) * probs_ME.mean(0)).sum() * probs_ME.shape[1]
    counted_M1 = attention_mask.flatten().repeat(len(router_logits))[:, None].to(probs_ME)
    total = counted_M1.sum()
    shares_E = (sent_ME * counted_M1).sum(0) / total
    return (shares_E * (probs_ME * counted_M1).sum(0) / total).sum() * probs_ME.shape[1]


def router_z_loss(router_logits: list[Tensor]) -> Tensor:
    """Return the mean squared log of the routers' normalisers, which keeps their logits small.

    Source: Zoph et al. 2022, arXiv:2202.08906, eq. 5.
    """
    return torch.cat(router_logits).float().logsumexp(-1).square().mean()


def routing_loss(model: nn.Module, config: LlamaConfig, attention_mask: Tensor | None = None) -> Tensor:
    """Return what the routers of the last forward pass add to the loss, weighted as the config says."""
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    logits = [mixture.router_logits for mixture in mixtures if mixture.router_logits is not None]
    loss = config.router_aux_loss_coef * load_balancing_loss(logits, config.num_experts_per_tok, attention_mask)
    if config.router_z_loss_coef:
        loss = loss + config.router_z_loss_coef * router_z_loss(logits)
    return loss
