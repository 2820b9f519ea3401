"""Adapters written into the weights, and taken out of them again."""

from __future__ import annotations

import torch
from torch import nn

from bpe_llama.model.adapters.layers import AdaptedLayer, TrainedRows, adapted_layers, base_modules


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Write the active adapters into the weights, so that they cost no time; the old weights are kept for `unmerge`.

    Raises:
        ValueError: If a weight is quantised, for it could not hold the sum, or is another module's too, as a tied
            head's is, for that would change with it. Nothing is merged then.
    """
    reason = why_not_merge(model)
    if reason is not None:
        raise ValueError(reason)
    for _, layer in adapted_layers(model):
        if layer.active and layer.unmerged is None:
            layer.merge()


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Give the weights back exactly the values they had before `merge`."""
    for _, layer in reversed(list(adapted_layers(model))):  # a tied head's weight was merged into after its embedding's
        if layer.unmerged is not None:
            layer.unmerge()


def why_not_merge(model: nn.Module) -> str | None:
    """Return what keeps the active adapters from being merged into the weights; None where nothing does."""
    for path, layer in adapted_layers(model):
        if not layer.active or layer.unmerged is not None:
            continue
        base = layer.base_layer
        if any(name in layer.adapters for name, _ in layer.active) and not isinstance(base, (nn.Linear, nn.Embedding)):
            return f"a {type(base).__name__} cannot hold what an adapter adds; dequantize it first"
        if "bias" in layer.changed() and getattr(base, "bias", None) is None:
            return f"the adapter's lora_bias has no place in {path}, which has no bias"
    if shared := shared_layers(model):
        return f"the weight of {', '.join(shared)} is another module's too, which must not change"
    return None


def shared_layers(model: nn.Module) -> list[str]:
    """Return the paths of the layers under active adapters whose weight another module holds as well: a tied head.

    Rows that an adapter replaces in a tied head and its embedding alike are no matter.

    Example:
        >>> from bpe_llama.model import LlamaConfig, LlamaForCausalLM
        >>> from bpe_llama.model.adapters import lora
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, tie_word_embeddings=True)
        >>> lora.shared_layers(lora.add(LlamaForCausalLM(config), target_modules=("q_proj", "lm_head")))
        ['lm_head']
    """
    layers = dict(adapted_layers(model))
    holders: dict[int, list[str]] = {}
    for path, module in base_modules(model):
        for weight in module.parameters(recurse=False):
            holders.setdefault(id(weight), []).append(path)
    found = []
    for path, layer in layers.items():
        parameters = dict(layer.base_layer.named_parameters())
        for together in (holders[id(parameters[name])] for name in layer.changed() & parameters.keys()):
            alike = {_only_rows(layers.get(other)) for other in together}
            if len(together) > 1 and (None in alike or len(alike) > 1):
                found.append(path)
                break
    return found


def _only_rows(layer: AdaptedLayer | None) -> int | None:
    """Return which rows are all that the active adapters change of a module; None where it is more, or none."""
    if layer is None or layer.replacement() is not None:
        return None
    updates = [layer.adapters[name] for name, _ in layer.active if name in layer.adapters]
    return id(updates[0]) if len(updates) == 1 and isinstance(updates[0], TrainedRows) else None
