"""Merges adapters into the weights, and restores the weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from bpe_llama.model.adapters.arguments import check_module
from bpe_llama.model.adapters.layers import AdaptedLayer, TrainedRows, adapted_layers, base_modules

AnyModel = TypeVar("AnyModel", bound=nn.Module)


@torch.no_grad()
def merge(model: AnyModel) -> AnyModel:
    """Merge the active adapters into the weights, so that they cost no time, and return the model.

    `unmerge` restores the weights.

    Raises:
        ValueError: If a weight is quantized, or shared with a module that must not change, as with a tied head. The
            model is then unchanged.

    Cost: memory for a copy of each changed weight.
    """
    check_module(model)
    reason = why_not_merge(model)
    if reason is not None:
        raise ValueError(reason)
    for _, layer in adapted_layers(model):
        if layer.active and layer.unmerged is None:
            layer.merge()
    return model


@torch.no_grad()
def unmerge(model: AnyModel) -> AnyModel:
    """Restore the exact values that the weights had before `merge`, and return the model."""
    check_module(model)
    for _, layer in reversed(list(adapted_layers(model))):  # `merge` changed a tied head's weight after its embedding's
        if layer.unmerged is not None:
            layer.unmerge()
    return model


def why_not_merge(model: nn.Module) -> str | None:
    """Return why the active adapters cannot be merged into the weights; None if they can."""
    check_module(model)
    for path, layer in adapted_layers(model):
        if not layer.active or layer.unmerged is not None:
            continue
        base = layer.base_layer
        if any(name in layer.adapters for name, _ in layer.active) and not isinstance(base, (nn.Linear, nn.Embedding)):
            return f"a {type(base).__name__} cannot hold an adapter's update; dequantize it first"
        if "bias" in layer.changed() and getattr(base, "bias", None) is None:
            return f"the adapter's lora_bias cannot be merged into {path}, which has no bias"
    if shared := shared_layers(model):
        return f"the weight of {', '.join(shared)} is shared with a module that must not change"
    return None


def shared_layers(model: nn.Module) -> list[str]:
    """Return the paths of the adapted layers that share a weight with a module without the same update: a tied head.

    Trained rows that a tied head and its embedding have in common do not count.

    Example:
        >>> from bpe_llama.model import LlamaConfig, LlamaForCausalLM
        >>> from bpe_llama.model.adapters import lora
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, tie_word_embeddings=True)
        >>> lora.shared_layers(lora.add(LlamaForCausalLM(config), target_modules=("q_proj", "lm_head")))
        ['lm_head']
    """
    check_module(model)
    layers = dict(adapted_layers(model))
    holders: dict[int, list[str]] = {}
    for path, module in base_modules(model):
        for weight in module.parameters(recurse=False):
            holders.setdefault(id(weight), []).append(path)
    found = []
    for path, layer in layers.items():
        parameters = dict(layer.base_layer.named_parameters())
        for together in (holders[id(parameters[name])] for name in layer.changed() & parameters.keys()):
            rows = {_trained_rows(layers.get(other)) for other in together}
            if len(together) > 1 and (None in rows or len(rows) > 1):
                found.append(path)
                break
    return found


def _trained_rows(layer: AdaptedLayer | None) -> int | None:
    """Return the ``id`` of the `TrainedRows` that is a module's only active update; None if there is no such one."""
    if layer is None or layer.replacement() is not None:
        return None
    updates = [layer.adapters[name] for name, _ in layer.active if name in layer.adapters]
    return id(updates[0]) if len(updates) == 1 and isinstance(updates[0], TrainedRows) else None
