"""DeepSeek V2: latent attention, and experts weighted by a softmax over all of them.

Shapes: ``M`` tokens, ``E`` experts, ``C`` experts per token.

Source: DeepSeek-AI 2024, arXiv:2405.04434.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bpe_llama._core import shown
from bpe_llama.model.config_values import is_one_of
from bpe_llama.model.families import deepseek_gguf as stored
from bpe_llama.model.families.deepseek import (
    UNREAD,
    DeepseekConfig,
    DeepseekExperts,
    DeepseekLayer,
    prepared,
    within_groups,
)
from bpe_llama.model.family import Family, GGUFLayout, register

METHODS = ("greedy", "group_limited_greedy")


@dataclass(frozen=True)
class DeepseekV2Config(DeepseekConfig):
    """The fields of DeepSeek V2, with the defaults of transformers.

    A token has the experts with the largest scores of all (``topk_method`` ``"greedy"``), or of the best groups
    (``"group_limited_greedy"``).
    """

    vocab_size: int = 102_400
    num_experts_per_tok: int = 6
    topk_method: str = "greedy"
    model_type: str = "deepseek_v2"

    def __post_init__(self) -> None:
        if not is_one_of(self.topk_method, METHODS):
            raise ValueError(f"topk_method is {shown(self.topk_method)}; expected one of {', '.join(METHODS)}")
        super().__post_init__()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads "
                f"({self.num_attention_heads}), which transformers' {self.model_type} requires"
            )

    @property
    def limits_groups(self) -> bool:
        """Return whether a token's experts are those of some groups alone."""
        return self.topk_method == "group_limited_greedy"


class SoftmaxExperts(DeepseekExperts):
    """A mixture of experts with softmax scores; the score of a group is that of its best expert."""

    def __init__(self, config: DeepseekV2Config) -> None:
        super().__init__(config)
        self.limits_groups = config.limits_groups

    def choose(self, logits_ME: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of each token's experts, float32 (M, C), and their numbers, int64 (M, C)."""
        scores_ME = logits_ME.softmax(-1, dtype=torch.float32)
        if self.limits_groups:
            groups_MG = scores_ME.view(len(scores_ME), self.groups, -1).amax(-1)
            scores_ME = within_groups(scores_ME, groups_MG, self.kept, 0.0)
        weights_MC, chosen_MC = scores_ME.topk(self.per_token, dim=-1)
        return weights_MC * self.factor, chosen_MC


class DeepseekV2Layer(DeepseekLayer):
    """A layer with latent attention, and an MLP or experts with softmax scores."""

    experts_class = SoftmaxExperts


def _read_gguf(fields: dict[str, Any], metadata: Mapping[str, Any], names: Any) -> None:
    if stored.gating(metadata, names) != stored.SOFTMAX:
        raise ValueError(
            f"metadata 'deepseek2.expert_gating_func' is {shown(metadata['expert_gating_func'])}; expected 1 "
            "(softmax) or 2 (sigmoid)"
        )
    stored.read_latents(fields, metadata, names)
    if fields["topk_group"] < fields["n_group"]:
        raise ValueError(
            f"metadata 'deepseek2.expert_group_count' is {fields['n_group']}; expected 1: llama.cpp chooses groups by "
            "their two best experts, and transformers' deepseek_v2 by the best"
        )


register(
    Family(
        "deepseek_v2",
        "DeepseekV2",
        DeepseekV2Config,
        DeepseekV2Layer,
        prepare=partial(prepared, config=DeepseekV2Config, scoring_func="softmax", norm_topk_prob=False),
        ignored=UNREAD,
        biases=("attention_bias", "mlp_bias"),
        has_experts=True,
        has_window=False,
        gguf=GGUFLayout(
            stored.ARCHITECTURE,
            stored.MODULES,
            keys=stored.KEYS,
            absent=stored.ABSENT,
            fixed={"attention_bias": False, "mlp_bias": False},
            splits=stored.SPLITS,
            head_key="rope.dimension_count",
            derived=stored.DERIVED,
            rope_types=("default", "yarn"),
            unstored=stored.UNSTORED | {"topk_method"},
            fits=lambda metadata, shapes: stored.gating(metadata, shapes) == stored.SOFTMAX,
            read=_read_gguf,
            write=lambda config: stored.write_latents(config, stored.SOFTMAX),
        ),
    )
)
