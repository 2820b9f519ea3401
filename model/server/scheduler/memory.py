"""Whether a model, its slots and its prefix cache fit into memory; known before any weight is read."""

from __future__ import annotations

import torch
from torch import nn

from bpe_llama.model.backends.cuda.memory import step_bytes
from bpe_llama.model.cache import make_cache
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.device import free_memory
from bpe_llama.model.pretrained import Pretrained
from bpe_llama.model.quantization import quantize

FIRST_LENGTH = 512
"""Tokens that slots hold at first, where ``max_length`` is None."""


def first_length(config: LlamaConfig, max_length: int | None) -> int:
    """Return the tokens that a slot holds at first."""
    return min(FIRST_LENGTH, config.context_length) if max_length is None else max_length


def check_fits(
    model: Pretrained,
    device: torch.device,
    *,
    quantized: str | None = None,
    group_size: int | None = None,
    engines: int = 1,
    slots: int = 16,
    max_length: int | None = None,
    prefix_cache_bytes: int = 0,
) -> None:
    """Check that what a server allocates for a model fits into a device's free memory.

    Counted are the weights, the slots as they are at first, the prefix cache and, on CUDA, what the graphs write:
    logits and buffers of a step of all slots. A pass over prompts needs some memory besides; on a system that does not
    report free memory nothing is checked.

    Args:
        model: On the meta device: with its config and dtype, without weights.
        device: Where it will be.
        quantized: The kind that its layers are quantized to, once they are read.
        group_size: As of `quantize.quantize`.
        engines: The model and its adapters; each has slots and a prefix cache, and all share the weights.
        slots: Sequences of one engine that run at once.
        max_length: Tokens of a slot; None as of `Scheduler`.
        prefix_cache_bytes: Of one engine.

    Raises:
        ValueError: If it does not fit; it names the sizes, and what makes them smaller.

    Example:
        >>> from bpe_llama.model import LlamaForCausalLM
        >>> config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> check_fits(LlamaForCausalLM(config, device="meta"), torch.device("meta"))
    """
    free = free_memory(device)
    if free is None:
        return
    dtype = str(model.dtype).removeprefix("torch.")
    read = _nbytes(model)
    kept = read if quantized is None else read - quantize.bytes_saved(model, quantized, group_size)
    length = first_length(model.config, max_length)
    if 1 <= length <= model.config.context_length:  # the engine refuses others
        cache = make_cache("full", model.config, slots, length, 1, model.dtype, torch.device("meta"))
        slot_bytes = engines * sum(store.nbytes for store in cache.stores)
    else:
        slot_bytes = 0
    prefixes = engines * prefix_cache_bytes
    step = step_bytes(model.config, slots, model.dtype) if device.type == "cuda" else {}
    graphs = engines * sum(step.values())
    if read > free:
        raise ValueError(
            f"the model does not fit: its weights take {_gb(read)} in {dtype}, but {_gb(free)} are free; "
            + ("use --dtype bfloat16 or " if model.dtype.itemsize > 2 else "use ")
            + "a smaller model (--quantize acts once they are read)"
        )
    total = kept + slot_bytes + prefixes + graphs
    if total > free:
        many = f"{slots:,} slots of {length:,} tokens" + (f" for each of {engines} models" if engines > 1 else "")
        written = "".join(f", {_gb(engines * size)} of {name} of CUDA graphs" for name, size in step.items())
        raise ValueError(
            f"the model does not fit: weights of {_gb(kept)} in {quantized or dtype}, {_gb(slot_bytes)} for {many} and "
            f"{_gb(prefixes)} of prefix cache{written} take {_gb(total)}, but {_gb(free)} are free; "
            f"use fewer --slots, a smaller --max-length or --prefix-cache-mb"
            + ("" if quantized else ", or --quantize int8")
        )


def _nbytes(model: nn.Module) -> int:
    """Return the bytes of a model's weights; tied weights count once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
