"""Steps that all checkpoint formats share: check shapes, allocate a model, copy tensors, reorder rows for RoPE."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import Model, Pretrained

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


def empty_model(
    config: LlamaConfig,
    dtype: torch.dtype,
    device: torch.device,
    model_class: type[Model],
    check: Callable[[Pretrained, torch.device], None] | None = None,
) -> Model:
    """Return a model with uninitialized weights, in evaluation mode.

    Args:
        config: Of the model.
        dtype: Of its weights.
        device: Where they are allocated.
        model_class: The class of the result.
        check: Called with the model on the meta device, and the device, before memory is allocated; it may raise.

    Raises:
        ValueError: If the weights exceed the device's free memory.
    """
    model = model_class(config, device="meta", dtype=dtype)
    if check is not None:
        check(model, device)
    model.allocate(device)
    return model.eval()


def expected_shapes(
    config: LlamaConfig, model_class: type[Pretrained] = LlamaForCausalLM
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors in a checkpoint of this config, without a tied ``lm_head``.

    Example:
        >>> len(expected_shapes(LlamaConfig()))  # 9 per layer, embedding, final norm, head
        291
    """
    shapes = {name: tuple(t.shape) for name, t in model_class(config, device="meta").state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def config_of_weights(model: Pretrained) -> LlamaConfig:
    """Return the model's config, with ``tie_word_embeddings`` false and a warning if the head differs.

    The head of a tied model gets a weight of its own if it is replaced: quantized and dequantized, or set by hand.
    """
    head, embedding = getattr(model, "lm_head", None), getattr(getattr(model, "model", None), "embed_tokens", None)
    if not model.config.tie_word_embeddings or not isinstance(head, nn.Linear) or not isinstance(embedding, nn.Module):
        return model.config
    tied = embedding.weight
    assert isinstance(tied, Tensor)  # for the type checker
    if head.weight is tied or torch.equal(head.weight, tied.to(head.weight)):
        return model.config
    warnings.warn(
        "tie_word_embeddings is true, but lm_head.weight differs from model.embed_tokens.weight; both are written, "
        "with tie_word_embeddings false",
        stacklevel=4,
    )
    return model.config.replace(tie_word_embeddings=False)


def check_counts(names: Iterable[str], config: LlamaConfig, source: Path) -> None:
    """Check that the tensors of a checkpoint are of as many layers and experts as its config counts.

    A config alone could count modules for minutes; this is checked before the first one is built.

    Args:
        names: The names of the tensors in the file.
        config: Of the model.
        source: The file that counts them, for the error message.

    Raises:
        ValueError: If the config counts more.

    Example:
        >>> check_counts(["model.layers.0.input_layernorm.weight"], LlamaConfig(), Path("config.json"))
        Traceback (most recent call last):
        ValueError: config.json: num_hidden_layers is 32; expected 1, the layers that have tensors
    """
    layers, experts, are_fused = set[str](), set[str](), False
    for name in names:
        layers.update(_LAYER.findall(name)[:1])
        experts.update(_EXPERT.findall(name))
        are_fused = are_fused or (".experts." in name and not experts)  # then their shapes are compared
    counts = [("num_hidden_layers", config.num_hidden_layers, len(layers))]
    stated = config.num_local_experts or 0
    if experts or (any(config.sparse_layers) and not are_fused):
        counts.append(("num_local_experts", stated, len(experts)))
    for name, stated, found in counts:
        if stated > found:
            kind = name.rpartition("_")[2]
            raise ValueError(f"{source}: {name} is {stated:,}; expected {found:,}, the {kind} that have tensors")


def check_shapes(
    found: Mapping[str, Iterable[int]], expected: Mapping[str, tuple[int, ...]], source: Path | str
) -> None:
    """Check the shapes of a checkpoint's tensors against the model's, before any tensor is read.

    Raises:
        ValueError: If tensors are missing, unexpected or of another shape; it names the first eight of each.
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
def fill(
    model: Model,
    tensors: Iterable[tuple[str, Tensor]],
    progress: Callable[[int, int], None] | None = None,
    total: int = 0,
) -> Model:
    """Copy each named tensor into the model, converted to its dtype, and return the model.

    The names and shapes must have passed `check_shapes`. ``progress`` is called after each tensor with the tensors
    copied so far and ``total``.

    Cost: memory for one tensor besides the model.
    """
    targets = model.state_dict()
    for done, (name, tensor) in enumerate(tensors, start=1):
        targets[name].copy_(tensor)
        if progress is not None:
            progress(done, total)
    return model


def check_plain(model: nn.Module, expected: Collection[str]) -> None:
    """Check that a model has exactly the expected tensors.

    Raises:
        ValueError: If layers were replaced by adapted or quantized ones.
    """
    changed = sorted((set(expected) ^ model.state_dict().keys()) - {"lm_head.weight"})
    if changed:
        raise ValueError(
            "the model's layers were replaced (adapters, quantized weights), so it is not a plain checkpoint: "
            f"{changed[0]} and {len(changed) - 1} others differ; remove or dequantize them, or save the adapter alone"
        )


def half_split_rows(weight: Tensor, heads: int) -> Tensor:
    """Return a query or key projection with its rows ordered for half-split RoPE pairs.

    Meta and llama.cpp rotate the features `(2 i, 2 i + 1)` of a head as a pair, Hugging Face `(i, i + H/2)`.

    Args:
        weight: Weight `(heads * H, D)` or bias `(heads * H,)`, ordered for interleaved pairs.
        heads: Heads of a query projection, KV heads of a key projection.

    Example:
        >>> half_split_rows(torch.arange(8), heads=2)
        tensor([0, 2, 1, 3, 4, 6, 5, 7])
    """
    pairs = weight.shape[0] // heads // 2
    return weight.view(heads, pairs, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def interleaved_rows(weight: Tensor, heads: int) -> Tensor:
    """Return a query or key projection with its rows ordered for interleaved pairs: the inverse of `half_split_rows`.

    Example:
        >>> interleaved_rows(torch.tensor([0, 2, 1, 3]), heads=1)
        tensor([0, 1, 2, 3])
    """
    pairs = weight.shape[0] // heads // 2
    return weight.view(heads, 2, pairs, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
