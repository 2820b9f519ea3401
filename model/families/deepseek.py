"""What DeepSeek V2 and V3 share: latent attention, and experts in groups beside experts that all tokens share.

Shapes: ``B`` batch, ``T`` length, ``M`` tokens (B * T), ``D`` hidden_size, ``E`` experts, ``C`` experts per token,
``G`` groups of experts.

Source: Dai et al. 2024, arXiv:2401.06066; DeepSeek-AI 2024, arXiv:2405.04434, sections 2.1 and 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama._core import shown
from bpe_llama.model.config_values import check_count, check_size
from bpe_llama.model.families.latent_attention import LatentAttention, LatentAttentionConfig
from bpe_llama.model.families.sparse_layers import SparseExpert, SparseLayer
from bpe_llama.model.family import without_constants
from bpe_llama.model.layers.mlp import MLP
from bpe_llama.model.layers.moe import MixtureOfExperts

UNREAD = frozenset({"aux_loss_alpha", "seq_aux", "ep_size"})
"""Keys about pretraining, which transformers' classes do not read."""


@dataclass(frozen=True)
class DeepseekConfig(LatentAttentionConfig):
    """The fields of both families; a ``config.json`` has ``num_local_experts`` as ``n_routed_experts``.

    The first ``first_k_dense_replace`` layers have an MLP, the others experts of ``moe_intermediate_size`` features:
    ``n_shared_experts`` for all tokens, and for each token ``num_experts_per_tok`` of the best ``topk_group`` of
    ``n_group`` groups, times ``routed_scaling_factor``.

    Raises:
        ValueError: If a value is out of range, the groups do not divide the experts or have too few for a token, or
            there is a routing loss, which transformers' classes do not have.
        TypeError: If a value is of another type.
    """

    num_local_experts: int | None = 64
    n_shared_experts: int = 2
    moe_intermediate_size: int = 1407
    first_k_dense_replace: int = 0
    routed_scaling_factor: float = 1.0
    n_group: int | None = None
    topk_group: int | None = None
    router_aux_loss_coef: float = 0.0

    SMALLEST_GROUP: ClassVar[int] = 1
    """The fewest experts that a group may have."""

    def __post_init__(self) -> None:
        self._check(check_size, "n_shared_experts", "moe_intermediate_size")
        check_count("first_k_dense_replace", self.first_k_dense_replace, 0)
        self._fill_floats("routed_scaling_factor")
        super().__post_init__()
        if self.router_aux_loss_coef:
            raise ValueError(
                f"router_aux_loss_coef is {shown(self.router_aux_loss_coef)}, but transformers' {self.model_type} has "
                "no routing loss; expected 0"
            )
        if self.limits_groups:
            self._check_groups()

    def _check_groups(self) -> None:
        experts, groups, kept = self.num_local_experts or 0, self.n_group, self.topk_group
        check_count("n_group", groups, 1)
        check_count("topk_group", kept, 1)
        if groups is None or kept is None or experts % groups or experts // groups < self.SMALLEST_GROUP:
            raise ValueError(
                f"n_group is {shown(groups)}, but n_routed_experts is {experts}; expected groups of the same size, of "
                f"at least {self.SMALLEST_GROUP} experts"
            )
        if kept > groups or kept * (experts // groups) < self.num_experts_per_tok:
            raise ValueError(
                f"topk_group is {shown(kept)}, but n_group is {groups} and num_experts_per_tok "
                f"{self.num_experts_per_tok}; expected at most all groups, with enough experts for a token"
            )

    @property
    def limits_groups(self) -> bool:
        """Return whether a token's experts are those of some groups alone."""
        return True

    @property
    def sparse_layers(self) -> tuple[bool, ...]:
        """Return for each layer whether it has experts."""
        return tuple(layer >= self.first_k_dense_replace for layer in range(self.num_hidden_layers))

    @property
    def expert_groups(self) -> tuple[int, int]:
        """Return the number of groups and how many of them a token's experts are from; (1, 1) if from all."""
        groups, kept = self.n_group or 1, self.topk_group or 1
        return (groups, kept) if self.limits_groups and kept < groups else (1, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``config.json``, with ``n_routed_experts`` as in published files."""
        values = super().to_dict()
        values["n_routed_experts"] = values.pop("num_local_experts")
        return values


def prepared(values: Mapping[str, Any], config: type[DeepseekConfig], **constants: Any) -> Mapping[str, Any]:
    """Return a file with the keys of `DeepseekConfig`, without the keys that state what the family always has.

    Raises:
        ValueError: If a key states something else.
    """
    found = dict(without_constants(values, moe_layer_freq=1, **constants))
    if "n_routed_experts" in found:
        experts = found.pop("n_routed_experts")
        if type(experts) is not int or any(
            found.get(name, experts) not in (experts, None) for name in ("num_local_experts", "num_experts")
        ):
            raise ValueError(
                f"n_routed_experts is {shown(experts)}; expected an integer, and no other num_local_experts or "
                "num_experts"
            )
        found["num_local_experts"] = experts
    size = found.pop("qk_head_dim", None)
    parts = [found.get(name, getattr(config, name)) for name in ("qk_nope_head_dim", "qk_rope_head_dim")]
    if size is not None and size != sum(part for part in parts if isinstance(part, int)):
        raise ValueError(f"qk_head_dim is {shown(size)}; expected qk_nope_head_dim + qk_rope_head_dim ({parts})")
    for name in ("rope_parameters", "rope_scaling"):
        rope = found.get(name)
        if not isinstance(rope, Mapping) or not rope.get("mscale_all_dim"):
            continue
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "yarn"):
            raise ValueError(
                f"mscale_all_dim is {shown(rope['mscale_all_dim'])} with the rope_type {kind!r}; expected 'yarn'"
            )
    return found


class Router(nn.Module):
    """The logits of the experts, computed in float32."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_local_experts or 1, config.hidden_size))

    def forward(self, x_MD: Tensor) -> Tensor:
        """Return the logits, float32 (M, E)."""
        return functional.linear(x_MD.float(), self.weight.float())


class DeepseekExperts(MixtureOfExperts):
    """A mixture of experts, of which some groups are chosen first, and an MLP for the experts that all tokens share."""

    expert_class = SparseExpert
    router_class: ClassVar[type[Router]] = Router

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__(config)
        self.add_module("gate", self.router_class(config))
        self.shared_experts = MLP(config, config.moe_intermediate_size * config.n_shared_experts)
        self.groups, self.kept = config.n_group or 1, config.topk_group or 1
        self.factor = config.routed_scaling_factor

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the sum of the chosen experts' weighted outputs and the shared experts', (B, T, D)."""
        shared_BTD: Tensor = self.shared_experts(x_BTD)
        return super().forward(x_BTD) + shared_BTD


def within_groups(scores_ME: Tensor, groups_MG: Tensor, kept: int, beyond: float) -> Tensor:
    """Return the scores with ``beyond`` for the experts outside the best groups of a token, (M, E).

    Args:
        scores_ME: The scores of experts; the experts of a group are neighbours.
        groups_MG: The scores of groups.
        kept: The groups of a token.
        beyond: The score of experts outside of them.

    Example:
        >>> scores = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
        >>> within_groups(scores, torch.tensor([[0.4, 0.3]]), 1, 0.0).tolist()[0][2:]
        [0.0, 0.0]
    """
    kept_MG = torch.zeros_like(groups_MG, dtype=torch.bool).scatter(-1, groups_MG.topk(kept, dim=-1).indices, True)
    kept_ME = kept_MG.repeat_interleave(scores_ME.shape[-1] // groups_MG.shape[-1], dim=-1)
    return scores_ME.masked_fill(~kept_ME, beyond)


class DeepseekLayer(SparseLayer):
    """A layer with latent attention, and an MLP or experts."""

    attention_class = LatentAttention
