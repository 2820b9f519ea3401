"""A decoding step as one program of fixed shapes, sampler included: on CUDA a graph that replays without the host.

For a few sequences, launching the kernels of a step takes longer than running them. So the whole state of a step (ids,
positions, draw counts, finished sequences) lies on the device and a CUDA graph is replayed again and again. Every few
steps the host asks whether all sequences have finished, and launches further steps before it has the answer. On other
devices the same program runs without a graph, slower than the CPU decoder, so that its ids can be tested without a GPU.

Shapes: ``B`` sequences, ``S`` key length, ``D`` hidden_size, ``V`` vocab_size.

Source: the static cache and the capture of a whole step are gpt-fast's.
"""

from __future__ import annotations

import time
import warnings
from collections import abc
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bpe_llama.model.backends.cuda.capture import captured
from bpe_llama.model.backends.cuda.dispatch import (
    options_unsupported_by_cuda_graph,
    unsupported_by_cuda_graph,
    unsupported_by_triton,
)
from bpe_llama.model.backends.cuda.memory import check_step_fits
from bpe_llama.model.backends.cuda.module_step import ModuleStep
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.sampling import sample_logits
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.sampling.sequence import Sequence
from bpe_llama.model.sampling.uniform import SEED_BITS, as_word

if TYPE_CHECKING:
    from bpe_llama.model.backends.cuda.triton_step import TritonStep


class CudaGraphDecoder:
    """Decodes prefilled sequences to their ends.

    Args:
        model: One for which `unsupported_by_cuda_graph` is None.
        cache: A full one, a slot for each sequence.
        backend: ``"triton"`` runs the layers by the kernels of `triton_step`, which makes weights adjacent; another
            name is a backend of `torch.compile` that fuses the operations of a step (``"inductor"``); None fuses none.

    Weights may change between runs; if they have moved, graphs are captured anew.

    Raises:
        ValueError: If the model or the cache is of another kind, or not for the kernels (see `unsupported_by_triton`).
    """

    def __init__(self, model: LlamaForCausalLM, cache: KVCache, backend: str | None = None) -> None:
        reason = unsupported_by_cuda_graph(model)
        if reason is not None:
            raise ValueError(f"no CUDA graph: {reason}")
        if type(cache) is not KVCache:
            raise ValueError(f"no CUDA graph over a {type(cache).__name__}; expected a full cache")
        self.model = model
        self.cache = cache
        self.warm_up_seconds = 0.0
        """Time spent on captures, compilation included."""
        self.fallback_reason: str | None = None if model.device.type == "cuda" else f"{model.device.type} has no graphs"
        """Why steps run without a graph; None if they have one."""
        batch, capacity, device = cache.batch_size, cache.capacity, model.device
        self.ids_BS = torch.full((batch, capacity), -1, device=device)
        """Prompt and continuation; -1 after them."""
        self.place_B, self.drawn_B, self.seed_B = (torch.zeros(batch, dtype=torch.long, device=device) for _ in "123")
        """Position of the last id; number of new ids; the seeds' bits."""
        self.ended_B = torch.zeros(batch, dtype=torch.bool, device=device)
        self._is_eos_V = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=device)
        self._program: Callable[[int], None] = self._step
        check_step_fits(model.config, batch, model.dtype, device)
        self._layers: TritonStep | ModuleStep = ModuleStep(model, cache)
        self._through_triton = backend == "triton"
        if backend is not None and not self._through_triton:
            self._program = torch.compile(self._step, backend=backend, fullgraph=True, dynamic=False)
        self._steps: dict[object, Callable[[], None]] = {}
        self._sampling: dict[object, dict[str, Any]] = {}
        self._known: list[object] = []
        self._refresh()

    def _refresh(self) -> None:
        """Drop graphs and kernels that hold addresses of weights, if weights have moved."""
        if self._known and self._known == self._places_of_weights():
            return
        self._steps.clear()
        if self._through_triton:
            reason = unsupported_by_triton(self.model)
            if reason is not None:
                raise ValueError(f"no Triton kernels: {reason}")
            from bpe_llama.model.backends.cuda.triton_step import TritonStep

            self._layers = TritonStep(self.model, self.cache)
        self._known = self._places_of_weights()

    def _places_of_weights(self) -> list[object]:
        """Return addresses of weights, versions of buffers, and the active adapters.

        Kernels copy some scales of quantized weights, and a graph repeats the branches that it was captured with.
        """
        places: list[object] = [weight.data_ptr() for weight in (*self.model.parameters(), *self.model.buffers())]
        places += [0 if buffer.is_inference() else buffer._version for buffer in self.model.buffers()]
        for module in self.model.modules():
            if hasattr(module, "active"):
                places.append((module.active, getattr(module, "unmerged", None) is None))
        return places

    @torch.no_grad()
    def run(self, sequences: abc.Sequence[Sequence], check_every: int = 16) -> None:
        """Decode the sequences, in the order of their slots, until all have finished.

        Args:
            sequences: Unfinished, with one new id each or more; their options may differ in the seed alone.
            check_every: Steps after which the host asks whether all have finished.

        Raises:
            ValueError: If the sequences do not fill the slots, their options differ, or ask for log-probabilities, or
                a row of the logits holds NaN, +inf or nothing finite.
        """
        self._load(sequences, check_every)
        start = time.perf_counter()
        limit = min(self.options.max_new_tokens - min(len(s.new_ids) for s in sequences), self.cache.capacity)
        longest, done, asked = max(len(s.ids) for s in sequences), 0, None
        while done < limit:
            count = min(check_every, limit - done)
            step = self._step_of(min(longest + done + count, self.cache.capacity))
            for _ in range(count):
                step()
            done += count
            if asked is not None and asked():  # about the round before, while this one runs
                break
            asked = self._ask()
        counts = self.drawn_B.tolist()  # waits for the last steps
        self._write_back(sequences, counts, time.perf_counter() - start)

    def _load(self, sequences: abc.Sequence[Sequence], check_every: int) -> None:
        if len(sequences) != self.cache.batch_size:
            raise ValueError(f"{len(sequences)} sequences for {self.cache.batch_size} slots; expected one for each")
        if check_every < 1:
            raise ValueError(f"check_every is {check_every}; expected at least 1")
        if any(
            sequence.num_prompt_tokens_left or sequence.finish_reason or not sequence.new_ids for sequence in sequences
        ):
            raise ValueError("a sequence has ended, or its prompt is not prefilled")
        kinds = {(s.options.sampling_key, s.options.max_new_tokens, s.options.min_new_tokens) for s in sequences}
        if len(kinds) > 1 or len({sequence.eos_ids for sequence in sequences}) > 1:
            raise ValueError("the sequences have unequal options; only seeds may differ in a CUDA graph")
        if any(sequence.options.logprobs for sequence in sequences):
            raise ValueError("logprobs is True, but a CUDA graph records none")
        reasons = [reason for s in sequences if (reason := options_unsupported_by_cuda_graph(s.options)) is not None]
        if reasons:
            raise ValueError(f"no CUDA graph: {reasons[0]}")
        self._refresh()
        self.options = sequences[0].options
        self._kind = kinds.pop()
        if self._kind not in self._sampling:  # graphs hold the addresses of these tensors
            self._sampling[self._kind] = _on_device(self.options, self.model.config.vocab_size, self.model.device)
        self._is_eos_V.zero_()
        self._is_eos_V[list(sequences[0].eos_ids)] = True
        self.ids_BS.fill_(-1)
        for slot, sequence in enumerate(sequences):
            self.ids_BS[slot, : len(sequence.ids)] = torch.tensor(sequence.ids)
        self.place_B.copy_(torch.tensor([len(sequence.ids) - 1 for sequence in sequences]))
        self.drawn_B.copy_(torch.tensor([len(sequence.new_ids) for sequence in sequences]))
        self.seed_B.copy_(
            torch.stack([as_word((sequence.options.seed or 0) & SEED_BITS, "cpu") for sequence in sequences])
        )
        self.ended_B.zero_()

    def _step(self, end: int) -> None:
        """Add an id to every unfinished sequence; attention covers the first ``end`` columns of the cache."""
        options = self.options
        last_B1 = self.ids_BS.gather(1, self.place_B[:, None])
        logits_BV = self._layers.logits(last_B1[:, 0].clamp(min=0), self.place_B, end)
        if options.min_new_tokens:
            barred_BV = self._is_eos_V & (self.drawn_B < options.min_new_tokens)[:, None]
            logits_BV = logits_BV.masked_fill(barred_BV, -torch.inf)
        new_B = sample_logits(
            logits_BV,
            **self._sampling[self._kind],
            history_BT=self.ids_BS if options.uses_history else None,
            seed=self.seed_B,
            step=self.drawn_B,
        )
        unfinished_B = (~self.ended_B).long()
        self.place_B += unfinished_B
        self.drawn_B += unfinished_B
        self.ids_BS.scatter_(1, self.place_B[:, None], torch.where(self.ended_B, last_B1[:, 0], new_B)[:, None])
        self.ended_B |= (new_B < 0) | self._is_eos_V[new_B.clamp(min=0)]
        self.ended_B |= (self.drawn_B >= options.max_new_tokens) | (self.place_B >= self.cache.capacity - 1)

    def _step_of(self, longest: int) -> Callable[[], None]:
        """Return the step whose attention covers at least ``longest`` columns, as a graph where there are graphs."""
        end = self._layers.keys_of(longest)
        if (end, self._kind) not in self._steps:
            start = time.perf_counter()
            step = self._capture(end) if self.fallback_reason is None else partial(self._program, end)
            self._steps[end, self._kind] = step
            self.warm_up_seconds += time.perf_counter() - start
        return self._steps[end, self._kind]

    def _capture(self, end: int) -> Callable[[], None]:
        state = (self.ids_BS, self.place_B, self.drawn_B, self.ended_B)
        before = [tensor.clone() for tensor in state]
        try:
            graph, _ = captured(partial(self._program, end), self.model.device)
        except RuntimeError as error:
            self.fallback_reason = str(error).partition("\n")[0]
            warnings.warn(
                f"the CUDA graph could not be captured, so the step runs kernel by kernel: {self.fallback_reason}",
                stacklevel=4,
            )
        for tensor, saved in zip(state, before, strict=True):
            tensor.copy_(saved)
        return graph.replay if self.fallback_reason is None else partial(self._program, end)

    def _ask(self) -> Callable[[], bool]:
        """Ask the device, without waiting, whether all have finished; return a function that waits for the answer."""
        if self.model.device.type != "cuda":
            answer = bool(self.ended_B.all())
            return lambda: answer
        ended = torch.empty((), dtype=torch.bool, pin_memory=True)
        ended.copy_(self.ended_B.all(), non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(self.model.device))

        def answer_of() -> bool:
            arrived.synchronize()
            return bool(ended)

        return answer_of

    def _write_back(self, sequences: abc.Sequence[Sequence], counts: abc.Sequence[int], seconds: float) -> None:
        for slot, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            first = len(sequence.prompt)
            sequence.new_ids[:] = self.ids_BS[slot, first : first + count].tolist()
            if -1 in sequence.new_ids:
                raise ValueError(f"row {slot} of the logits holds NaN, +inf or nothing finite")
            sequence.decode_seconds += seconds
            sequence.finish_reason = "stop" if sequence.new_ids[-1] in sequence.eos_ids else "length"
            self.cache.lengths[slot] = len(sequence.ids) - 1


def _on_device(options: GenerationOptions, vocab_size: int, device: torch.device) -> dict[str, Any]:
    """Return the sampler's options with biases, (V,), and ids as tensors, which a graph cannot create itself."""
    values = options.sampler_options
    if values["logit_bias"] is not None:
        bias_V = torch.zeros(vocab_size)
        for biased, bias in values["logit_bias"].items():
            bias_V[biased] = bias
        values["logit_bias"] = bias_V.to(device)
    for name in ("banned_ids", "allowed_ids"):
        if values[name] is not None:
            values[name] = torch.tensor(list(values[name]), dtype=torch.int64, device=device)
    return values
