"""DeepSeek V3 and R1: as V2, with sigmoid scores and a bias of each expert that changes the choice, not the weights.

Shapes: ``M`` tokens, ``E`` experts, ``C`` experts per token.

Source: DeepSeek-AI 2024, arXiv:2412.19437, section 2.1.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bpe_llama.model.config_values import check_count, check_flag
from bpe_llama.model.families import deepseek_gguf as stored
from bpe_llama.model.families.deepseek import (
    UNREAD,
    DeepseekConfig,
    DeepseekExperts,
    DeepseekLayer,
    Router,
    prepared,
    within_groups,
)
from bpe_llama.model.family import Family, GGUFLayout, GGUFSplit, register


@dataclass(frozen=True)
class DeepseekV3Config(DeepseekConfig):
    """The fields of DeepSeek V3, with the defaults of transformers.

    With ``norm_topk_prob`` the weights of a token's experts add up to 1 before ``routed_scaling_factor`` multiplies
    them. ``num_nextn_predict_layers`` layers for the prediction of further tokens, which a checkpoint has after the
    others, are not read.
    """

    vocab_size: int = 129_280
    hidden_size: int = 7168
    intermediate_size: int = 18_432
    num_hidden_layers: int = 61
    num_attention_heads: int = 128
    max_position_embeddings: int = 4096
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    num_local_experts: int | None = 256
    num_experts_per_tok: int = 8
    n_shared_experts: int = 1
    moe_intermediate_size: int = 2048
    first_k_dense_replace: int = 3
    routed_scaling_factor: float = 2.5
    n_group: int | None = 8
    topk_group: int | None = 4
    norm_topk_prob: bool = True
    rope_interleave: bool = True
    num_nextn_predict_layers: int = 1
    model_type: str = "deepseek_v3"

    SMALLEST_GROUP: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self._check(check_flag, "norm_topk_prob", "rope_interleave")
        check_count("num_nextn_predict_layers", self.num_nextn_predict_layers, 0)
        super().__post_init__()

    @property
    def interleaves_rope(self) -> bool:
        """Return whether neighbouring features are rotated together, not features of both halves."""
        return self.rope_interleave


class BiasedRouter(Router):
    """A router with a bias of each expert's score, which is not trained and stays float32."""

    e_score_correction_bias: Tensor

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__(config)
        self.register_buffer("e_score_correction_bias", torch.zeros(len(self.weight), dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BiasedRouter:
        # model.to(torch.bfloat16) must not round the bias: it decides between scores that are close together.
        before = self.e_score_correction_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = self.e_score_correction_bias
        self.e_score_correction_bias = after.float() if before.is_meta else before.to(after.device)
        return self


class SigmoidExperts(DeepseekExperts):
    """A mixture of experts with sigmoid scores; the score of a group is the sum of its best two experts'."""

    router_class = BiasedRouter

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__(config)
        self.normalized = config.norm_topk_prob

    def choose(self, logits_ME: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of each token's experts, float32 (M, C), and their numbers, int64 (M, C)."""
        scores_ME = logits_ME.float().sigmoid()
        ranked_ME = scores_ME + self.gate.get_buffer("e_score_correction_bias")
        groups_MG = ranked_ME.view(len(ranked_ME), self.groups, -1).topk(2, dim=-1).values.sum(-1)
        chosen_MC = within_groups(ranked_ME, groups_MG, self.kept, -torch.inf).topk(self.per_token, dim=-1).indices
        weights_MC = scores_ME.gather(-1, chosen_MC)
        if self.normalized:
            weights_MC = weights_MC / (weights_MC.sum(-1, keepdim=True) + 1e-20)
        return weights_MC * self.factor, chosen_MC


class DeepseekV3Layer(DeepseekLayer):
    """A layer with latent attention, and an MLP or experts with sigmoid scores."""

    experts_class = SigmoidExperts


def _prepare(values: Mapping[str, Any]) -> Mapping[str, Any]:
    found = dict(prepared(values, DeepseekV3Config, scoring_func="sigmoid", topk_method="noaux_tc"))
    if "num_mtp_layers" in found:  # the name in transformers 5
        found.setdefault("num_nextn_predict_layers", found.pop("num_mtp_layers"))
    return found


_NORMALIZED = "expert_weights_norm"

register(
    Family(
        "deepseek_v3",
        "DeepseekV3",
        DeepseekV3Config,
        DeepseekV3Layer,
        prepare=_prepare,
        ignored=UNREAD,
        biases=("attention_bias",),
        has_experts=True,
        has_window=False,
        layers_after="num_nextn_predict_layers",
        gguf=GGUFLayout(
            stored.ARCHITECTURE,
            stored.MODULES,
            keys=stored.KEYS | {_NORMALIZED: "norm_topk_prob"},
            absent=stored.ABSENT | {_NORMALIZED: False},
            fixed={"attention_bias": False, "rope_interleave": True, "num_nextn_predict_layers": 0},
            splits=stored.SPLITS | {"mlp.gate.e_score_correction_bias": GGUFSplit(("exp_probs_b.bias",))},
            head_key="rope.dimension_count",
            derived=stored.DERIVED,
            rope_types=("default", "yarn"),
            unstored=stored.UNSTORED | {"num_nextn_predict_layers"},
            fits=lambda metadata, shapes: stored.gating(metadata, shapes) == stored.SIGMOID,
            read=stored.read_latents,
            write=lambda config: stored.write_latents(config, stored.SIGMOID),
        ),
    )
)
