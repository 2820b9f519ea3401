"""What every loader does: an empty model of the right shape, filled tensor by tensor, or not at all."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import Model, Pretrained


def empty_model(
    config: LlamaConfig,
    dtype: torch.dtype,
    device: torch.device,
    model_class: type[Model],
) -> Model:
    """Return a model whose weights are allocated but not set, in evaluation mode."""
    model = model_class(config, device="meta", dtype=dtype)
    model.allocate(device)
    return model.eval()


def expected_shapes(
    config: LlamaConfig, model_class: type[Pretrained] = LlamaForCausalLM
) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor a checkpoint of this config holds; a tied head is left out.

    Example:
        >>> len(expected_shapes(LlamaConfig()))  # 9 a layer, embedding, final norm, head
        291
    """
    shapes = {name: tuple(t.shape) for name, t in model_class(config, device="meta").state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def check_shapes(found: Mapping[str, Iterable[int]], expected: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """Check a checkpoint's tensors against the model's, before any is read.

    Raises:
        ValueError: Naming tensors that are missing, unexpected or of another shape, the first eight of each.
    """
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    problems = [
        f"{title}: {', '.join(names[:8])}" + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
        for title, names in (("missing", missing), ("unexpected", extra), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise ValueError(f"{source}: the tensors do not fit the config; {'; '.join(problems)}")


@torch.no_grad()
def fill(model: Model, tensors: Iterable[tuple[str, Tensor]]) -> Model:
    """Copy each named tensor into the model, converting its dtype; return the model.

    Names and shapes must have been checked. Only one tensor is held besides the model's own.
    """
    targets = model.state_dict()
    for name, tensor in tensors:
        targets[name].copy_(tensor)
    return model


def check_plain(model: nn.Module, expected: Collection[str]) -> None:
    """Refuse to write a model with other weights than those expected.

    Raises:
        ValueError: If layers were replaced by adapted or quantised ones.
    """
    changed = sorted((set(expected) ^ model.state_dict().keys()) - {"lm_head.weight"})
    if changed:
        raise ValueError(
            "the model's layers were replaced (adapters, quantised weights), so it is not a plain checkpoint: "
            f"{changed[0]} and {len(changed) - 1} others differ; remove or dequantize them, or save the adapter alone"
        )
