"""Which code runs the forward pass of a step: the CPU decoder, CUDA graphs, or the modules of `llama.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from bpe_llama._arguments import boolean
from bpe_llama.model.backends.cpu.decoder import CpuDecoder
from bpe_llama.model.backends.cpu.dispatch import can_decode, decoder_serves
from bpe_llama.model.backends.cuda.decoder import CudaDecoder
from bpe_llama.model.backends.cuda.dispatch import unsupported_by_engine
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.llama import LlamaForCausalLM

GRAPH_DEVICES = ("cuda",)
"""Devices on which an engine runs `CudaDecoder`."""


class Forward(Protocol):
    """Runs new ids of every slot of a cache through a model."""

    ragged: bool
    """Whether slots with unequal numbers of new ids share one pass, without padding."""

    def __call__(self, ids: Sequence[Sequence[int]], cache: KVCache, every: bool = False) -> Tensor:
        """Return the logits after each slot's last new id, (B, V), or after each new id, (M, V).

        The next call may overwrite them.

        Args:
            ids: New ids of each slot, at least one.
            cache: Read, and extended by the new ids.
            every: Return the logits after each new id.
        """


def decoder_for(model: LlamaForCausalLM, previous: CpuDecoder | None = None) -> CpuDecoder | None:
    """Return the CPU decoder of a model's present weights, ``previous`` refreshed if given; None if it has none."""
    if not can_decode(model):
        return None
    if previous is None:
        return CpuDecoder(model)
    previous.refresh()
    return previous


def forward_for(
    model: LlamaForCausalLM, cache: KVCache, decoder: CpuDecoder | None, graphs: CudaDecoder | None = None
) -> Forward:
    """Return what runs a model over this form of cache."""
    if decoder is not None and graphs is None and type(cache) is KVCache:
        return decoder
    return _ByLength(model, decoder, graphs)


class Refreshed:
    """The forward pass of a model that may change: other weights, adapters or layers.

    Args:
        model: The model.
        cache: All slots of the engine.
        cuda_graph: Whether CUDA graphs may run it.
    """

    def __init__(self, model: LlamaForCausalLM, cache: KVCache, cuda_graph: bool = True) -> None:
        self.model = model
        self.forward: Forward = forward_for(model, cache, None)
        self.graphs: CudaDecoder | None = None
        self._cuda_graph = boolean("cuda_graph", cuda_graph) and model.device.type in GRAPH_DEVICES
        self._decoder: CpuDecoder | None = None
        self._fingerprint: list[object] = []
        _count_optimizer_steps()

    def refresh(self, cache: KVCache) -> bool:
        """Use the model as it is now, over this form of cache; return whether it changed since the last call."""
        self._decoder = decoder_for(self.model, self._decoder)
        changed = fingerprint_of(self.model) != self._fingerprint
        if self._cuda_graph and (changed or self.graphs is None or not self.graphs.serves(cache)):
            self.graphs, self.forward = None, forward_for(self.model, cache, self._decoder)
            # The memory of the former is free before the next one takes its own.
            if unsupported_by_engine(self.model, cache) is None:
                self.graphs = CudaDecoder(self.model, cache)  # moves weights that share an input side by side
        if changed:
            self._fingerprint = fingerprint_of(self.model)
        self.forward = forward_for(self.model, cache, self._decoder, self.graphs)
        return changed

    def hidden(self, ids_BT: Tensor, cache: KVCache) -> Tensor:
        """Return the normalized hidden states of prompts, (B, T, D), and extend the cache."""
        found = None if self.graphs is None else self.graphs.hidden(ids_BT, cache)
        if found is None:
            found = self.model.model(ids_BT, past_key_values=cache)
        return found


class _ByLength:
    """Runs one pass for each run of adjacent slots with equally many new ids."""

    ragged = False

    def __init__(self, model: LlamaForCausalLM, decoder: CpuDecoder | None, graphs: CudaDecoder | None) -> None:
        self.model, self.decoder, self.graphs = model, decoder, graphs

    def __call__(self, ids: Sequence[Sequence[int]], cache: KVCache, every: bool = False) -> Tensor:
        runs = [list(run) for _, run in groupby(ids, len)]
        if len(runs) == 1:
            return self._uniform(ids, cache, every)
        parts = []
        for run, end in zip(runs, accumulate(map(len, runs)), strict=True):
            slots = cache.rows(end - len(run), end)
            parts.append(self._uniform(run, slots, every).clone())  # the next pass may overwrite them
            cache.lengths[end - len(run) : end] = slots.lengths
        return torch.cat(parts)

    def _uniform(self, ids: Sequence[Sequence[int]], cache: KVCache, every: bool) -> Tensor:
        found = None if self.graphs is None else self.graphs(ids, cache, every)
        if found is not None:
            return found
        if self.decoder is not None and decoder_serves(cache, len(ids) * len(ids[0]), len(ids[0]), every):
            return self.decoder(ids, cache, every)
        ids_BT = torch.tensor(ids, device=self.model.device)
        logits: Tensor = self.model(ids_BT, past_key_values=cache, logits_to_keep=0 if every else 1).logits
        return logits.flatten(0, 1)


@torch.no_grad()
def prefill_padded(
    model: LlamaForCausalLM,
    prompts: Sequence[list[int]],
    cache: KVCache,
    chunk: int,
    hidden: Callable[[Tensor, KVCache], Tensor] | None = None,
) -> Tensor:
    """Prefill prompts by the model's modules, and return the logits after each prompt's last id, (B, V).

    Rows are padded on the right, so the causal mask alone hides padding. Its keys and values are dropped at the end.

    Args:
        model: Weights.
        prompts: Whole prompts; the first ``cache.lengths[0]`` ids of each are in the cache already.
        cache: One slot for each prompt.
        chunk: Prompt tokens of each row per forward pass.
        hidden: Replaces the modules: `Refreshed.hidden`.
    """
    lengths = [len(prompt) for prompt in prompts]
    ids_BT = torch.tensor([prompt + [0] * (max(lengths) - len(prompt)) for prompt in prompts]).to(model.device)
    last_BD: Any = None
    for start in range(cache.lengths[0], max(lengths), chunk):
        chunk_BT = ids_BT[:, start : start + chunk]
        hidden_BTD = model.model(chunk_BT, past_key_values=cache) if hidden is None else hidden(chunk_BT, cache)
        last_BD = hidden_BTD.new_empty(len(prompts), hidden_BTD.shape[-1]) if last_BD is None else last_BD
        for row, length in enumerate(lengths):
            if start < length <= start + chunk_BT.shape[1]:
                last_BD[row] = hidden_BTD[row, length - start - 1]
    cache.truncate(lengths)
    return model.logits(last_BD)


@torch.no_grad()
def prefill_ragged(forward: Forward, prompts: Sequence[list[int]], cache: KVCache, chunk: int) -> Tensor:
    """Prefill prompts without padding, and return the logits after each prompt's last id, (B, V).

    Args:
        forward: A ragged one.
        prompts: Whole prompts; the first ``cache.lengths[slot]`` ids of each are in the cache already.
        cache: One slot for each prompt.
        chunk: Prompt tokens of all rows per forward pass: the next ids of as many prompts as they allow.
    """
    parts: list[Tensor] = []
    done = 0
    while done < len(prompts):
        ids: list[list[int]] = []
        room = chunk
        for slot in range(done, len(prompts)):
            if room:
                length = cache.lengths[slot]
                ids.append(prompts[slot][length : length + room])
                room -= len(ids[-1])
        end = done + len(ids)
        slots = cache.rows(done, end)
        logits_BV = forward(ids, slots)
        cache.lengths[done:end] = slots.lengths
        complete = cache.lengths[end - 1] == len(prompts[end - 1])
        parts.append(logits_BV[: len(ids) - (not complete)].clone())  # the next pass may overwrite them
        done = end - 1 + complete
    return torch.cat(parts)


_optimizer_steps = [0]
"""Steps of all optimizers since the first `Refreshed`: fused ones change weights without another version."""


@functools.cache
def _count_optimizer_steps() -> None:
    def count(*_: object) -> None:
        _optimizer_steps[0] += 1

    register_optimizer_step_post_hook(count)


def fingerprint_of(model: LlamaForCausalLM) -> list[object]:
    """Return a value that changes whenever the weights, or the layers that use them, do."""
    marks: list[object] = [*_optimizer_steps]
    for module in model.modules():
        marks.append((id(module), module.training, getattr(module, "active", ())))
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                marks.append((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version))
    return marks
