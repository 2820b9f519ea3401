"""Weighted sums of adapters as one new adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bpe_llama.model.adapters.config import OFFSET_INITS, AdapterConfig
from bpe_llama.model.adapters.files import ModuleTensors
from bpe_llama.model.adapters.layers import Adapter, EmbeddingAdapter

KINDS = ("svd", "linear", "cat")


def weighted_config(
    configs: Sequence[AdapterConfig], names: Sequence[str], kind: str, svd_rank: int | None
) -> AdapterConfig:
    """Return the config of a weighted sum.

    Raises:
        ValueError: If an adapter is not plain LoRA, or the ranks of a linear sum differ.
    """
    for name, config in zip(names, configs, strict=True):
        unsupported = [
            field
            for field in ("use_dora", "use_rslora", "lora_bias", "modules_to_save", "trainable_token_indices")
            if getattr(config, field)
        ]
        if config.bias != "none":
            unsupported.append("bias")
        if config.init_lora_weights in OFFSET_INITS:
            unsupported.append("init_lora_weights")
        if unsupported:
            value = getattr(config, unsupported[0])
            raise ValueError(f"adapter {name!r} has {unsupported[0]} {value!r}; only plain LoRA can be summed")
    ranks = [max([config.r, *config.rank_pattern.values()]) for config in configs]
    if kind == "linear" and len(set(ranks)) > 1:
        raise ValueError(
            f"the ranks are {', '.join(map(str, ranks))}; a 'linear' sum needs equal ones, 'svd' or 'cat' do not"
        )
    rank = sum(ranks) if kind == "cat" else ranks[0] if kind == "linear" else svd_rank or max(ranks)
    patterns = [config.target_modules for config in configs]
    texts = [pattern for pattern in patterns if isinstance(pattern, str)]
    if texts and len(texts) < len(patterns):
        raise ValueError("target_modules is a pattern in one adapter and a list in another; expected the same of all")
    lists = [pattern for pattern in patterns if not isinstance(pattern, str)]
    targets = "|".join(f"({text})" for text in texts) if texts else tuple(sorted({n for names in lists for n in names}))
    return replace(
        configs[0],
        r=rank,
        lora_alpha=float(rank),
        target_modules=targets,
        rank_pattern={},
        alpha_pattern={},
        described={k: v for k, v in configs[0].described.items() if k not in ("rank_pattern", "alpha_pattern")},
    )


def targeting(config: AdapterConfig, paths: Sequence[str]) -> AdapterConfig:
    """Return a config whose target modules are these paths: adapters of other layers have no other config in common."""
    return replace(config, target_modules=tuple(paths), exclude_modules=(), layers_to_transform=None, layers_pattern=())


def weighted_part(updates: Sequence[tuple[Adapter | EmbeddingAdapter, float]], kind: str, rank: int) -> ModuleTensors:
    """Return a layer's matrices of a weighted sum of updates; see `lora.add_weighted_adapter` for ``kind``."""
    pairs = [_matrices(update) for update, _ in updates]
    factors = [weight * update.scale for update, weight in updates]
    if kind == "cat":
        down = torch.cat([first * factor for (first, _), factor in zip(pairs, factors, strict=True)])
        up = torch.cat([second for _, second in pairs], dim=1)
    elif kind == "linear":
        roots = [math.sqrt(abs(factor)) for factor in factors]
        signed = [math.copysign(root, factor) for root, factor in zip(roots, factors, strict=True)]
        down = _total([first * root for (first, _), root in zip(pairs, signed, strict=True)])
        up = _total([second * root for (_, second), root in zip(pairs, roots, strict=True)])
    else:
        total = _total([factor * (second @ first) for (first, second), factor in zip(pairs, factors, strict=True)])
        left, size, right = torch.linalg.svd(total, full_matrices=False)
        down, up = right[:rank], left[:, :rank] * size[:rank]
    down = torch.cat([down, down.new_zeros(rank - len(down), down.shape[1])])
    up = torch.cat([up, up.new_zeros(len(up), rank - up.shape[1])], dim=1)
    names = ("lora_A.weight", "lora_B.weight")
    if isinstance(updates[0][0], EmbeddingAdapter):
        names = ("lora_embedding_A", "lora_embedding_B")
    return ModuleTensors(update=dict(zip(names, (down, up), strict=True)))


def _matrices(update: Adapter | EmbeddingAdapter) -> tuple[Tensor, Tensor]:
    if isinstance(update, EmbeddingAdapter):
        return update.lora_embedding_A.detach().float(), update.lora_embedding_B.detach().float()
    return update.lora_A.detach().float(), update.lora_B.detach().float()


def _total(tensors: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise ValueError(
            f"the matrices of a layer are {', '.join(map(str, sorted(shapes)))}; a 'linear' sum needs equal ones"
        )
    return torch.stack(list(tensors)).sum(0)
