"""The weight layout: all weights of a model in one buffer, in the order in which a token reads them.

Decoding one sequence is bound by memory bandwidth. One buffer on huge pages avoids most TLB misses, and the weights of
layers that share an input are adjacent, so that one product serves them.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bpe_llama.model.backends.layer_parts import layer_parts
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.quantization.layers import is_readable, readable

ALIGNMENT = 64
"""Bytes; each group of weights begins at a multiple of it, a cache line of most processors."""


def huge_page_buffer(size: int) -> Tensor:
    """Return ``size`` bytes of memory, uint8, on huge pages where the system supports them.

    Example:
        >>> huge_page_buffer(1000).shape
        torch.Size([1000])
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # Linux has it
        return torch.empty(size, dtype=torch.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them uses small pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


@torch.inference_mode(False)  # weights created in a caller's inference mode could not be trained
@torch.no_grad()
def make_readable(model: LlamaForCausalLM) -> None:
    """Move the weights of a CPU model that the Rust kernels cannot read in place: with strides, or not aligned.

    The parameters and buffers stay the same objects with the same values.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if not is_readable(tensor):
            tensor.data = readable(tensor.data)


@torch.inference_mode(False)  # as above
@torch.no_grad()
def lay_out_weights(model: LlamaForCausalLM) -> None:
    """Move a CPU model's weights into one buffer: queries, keys and values adjacent, gate and up likewise.

    The parameters stay the same objects with the same values, so optimisers and `save_pretrained` do not notice.
    Costs one copy of the weights; each old one is freed as soon as it is copied.
    """
    modules: list[Sequence[nn.Module]] = [[model.model.embed_tokens]]
    for layer in layer_parts(model):
        modules += [[module] for module in dict.fromkeys(norm.module for norm in layer.norms)]
        modules += layer.together
    modules.append([model.model.norm])
    if model.lm_head.weight is not model.model.embed_tokens.weight:
        modules.append([model.lm_head])
    groups = [
        [tensor for module in group if isinstance(tensor := getattr(module, name, None), nn.Parameter)]
        for group in modules
        for name in ("weight", "bias")
    ]

    places, size = [], 0
    for group in groups:
        places.append(size)
        size += -(-sum(weight.numel() * weight.element_size() for weight in group) // ALIGNMENT) * ALIGNMENT
    buffer = huge_page_buffer(size)
    for place, group in zip(places, groups, strict=True):
        for weight in group:
            new_place = place + weight.numel() * weight.element_size()
            moved = buffer[place:new_place].view(weight.dtype).view(weight.shape)
            weight.data = moved.copy_(weight)
            place = new_place
