"""Runs the passes of an engine on CUDA: decoding by graphs of a few batch sizes, prompts by `WidePrefill`.

Sequences join and leave, so a pass has any number of rows. It replays the graph of the next larger size; rows without a
sequence read and write nothing. The ids and positions of a pass are copied to tensors that all graphs read.

Shapes: ``B`` sequences of a pass, ``M`` rows of a graph, ``T`` new tokens of a slot, ``D`` hidden_size, ``V``
vocab_size.

Source: padding to captured batch sizes is vLLM's.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from bpe_llama.model.backends.cuda.capture import captured
from bpe_llama.model.backends.cuda.dispatch import batch_sizes, unsupported_by_triton
from bpe_llama.model.backends.cuda.memory import check_step_fits
from bpe_llama.model.backends.cuda.module_step import ModuleStep
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.llama import LlamaForCausalLM


class CudaDecoder:
    """Runs passes over one cache and the present weights of a model; made anew if either is replaced.

    Args:
        model: One for which `unsupported_by_engine` is None.
        cache: All slots of a full cache.
        triton: Whether the Triton kernels compute the layers; by default where they can, on CUDA.

    Raises:
        ValueError: If there is too little memory for a step.
    """

    def __init__(self, model: LlamaForCausalLM, cache: KVCache, triton: bool | None = None) -> None:
        self.model, self.cache = model, cache
        self.sizes = batch_sizes(cache.batch_size)
        self.capture_seconds = 0.0
        """Time spent on captures, compilation included."""
        on_cuda = model.device.type == "cuda"
        self.fallback_reason: str | None = None if on_cuda else f"{model.device.type} has no graphs"
        """Why steps run without a graph; None if they have one."""
        check_step_fits(model.config, cache.batch_size, model.dtype, model.device)
        triton = on_cuda and unsupported_by_triton(model) is None if triton is None else triton
        self.prefill = None
        if triton:
            from bpe_llama.model.backends.cuda.triton_step import TritonStep
            from bpe_llama.model.backends.cuda.wide_layers import WideLayers, WidePrefill

            layers = WideLayers(model)
            self.step: TritonStep | ModuleStep = TritonStep(model, cache, layers)
            # In float32 the modules run prompts, so that logits stay the same whatever the chunks.
            self.prefill = WidePrefill(layers) if model.dtype == torch.bfloat16 else None
        else:
            self.step = ModuleStep(model, cache)
        with torch.inference_mode(False):
            even = cache.batch_size + cache.batch_size % 2  # so that both rows are aligned alike
            self.inputs_2M = torch.zeros(2, even, dtype=torch.long, device=model.device)
        self._pool = torch.cuda.graph_pool_handle() if on_cuda else None
        self._steps: dict[tuple[int, int], Callable[[], Tensor]] = {}

    def serves(self, cache: KVCache) -> bool:
        """Return whether these are slots of the decoder's cache."""
        return type(cache) is KVCache and cache.whole is self.cache.whole

    def __call__(self, ids: Sequence[Sequence[int]], cache: KVCache, every: bool = False) -> Tensor | None:
        """Return the logits after each slot's last new id, (B, V), or with ``every`` after each new id; or None.

        None says that `llama.py` has to run the pass: over another cache, with a mask, or to raise its error. The next
        call may overwrite the logits.

        Args:
            ids: New ids of each slot, equally many.
            cache: Adjacent slots of the cache; extended by the new ids.
            every: Return the logits after each new id.
        """
        if not self.serves(cache):
            return None
        if len(ids[0]) == 1:
            return self._decode([last for (last,) in ids], cache)
        if self.prefill is None:
            return None
        hidden_BTD = self.hidden(torch.tensor(ids, device=self.model.device), cache)
        if hidden_BTD is None:
            return None
        return self.model.logits(hidden_BTD if every else hidden_BTD[:, -1:]).flatten(0, 1)

    def hidden(self, ids_BT: Tensor, cache: KVCache) -> Tensor | None:
        """Return the normalized hidden states of prompts, (B, T, D), and extend the cache; or None, as above."""
        if self.prefill is None or not self.serves(cache):
            return None
        return self.prefill.hidden(ids_BT, cache)

    def _decode(self, ids: list[int], cache: KVCache) -> Tensor | None:
        longest, first = max(cache.lengths) + 1, cache.first_slot
        if longest > self.cache.capacity:
            return None
        end = first + len(ids)
        size = next(size for size in self.sizes if size >= end)
        before, after = first, size - end
        rows = [[0] * before + ids + [0] * after, [-1] * before + list(cache.lengths) + [-1] * after]
        self.inputs_2M[:, :size].copy_(torch.tensor(rows))
        with torch.cuda.device_of(self.inputs_2M):  # type: ignore[no-untyped-call]
            logits_MV = self._step_of(size, self.step.keys_of(longest))()
        cache.advance(1)
        return logits_MV[first:end]

    def _step_of(self, size: int, keys: int) -> Callable[[], Tensor]:
        """Return the step of ``size`` rows that attends to the first ``keys`` columns, as a graph where there are."""
        if (size, keys) not in self._steps:
            start = time.perf_counter()
            program = partial(self.step.logits, self.inputs_2M[0, :size], self.inputs_2M[1, :size], keys)
            self._steps[size, keys] = program if self.fallback_reason else self._captured(program)
            self.capture_seconds += time.perf_counter() - start
        return self._steps[size, keys]

    def _captured(self, program: Callable[[], Tensor]) -> Callable[[], Tensor]:
        try:
            graph, logits_MV = captured(program, self.model.device, self._pool)
        except RuntimeError as error:
            self.fallback_reason = str(error).partition("\n")[0]
            warnings.warn(
                f"no CUDA graph could be captured, so steps run kernel by kernel: {self.fallback_reason}", stacklevel=4
            )
            return program

        def replay() -> Tensor:
            graph.replay()
            return logits_MV

        return replay
