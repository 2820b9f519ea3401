"""A step of decoding as one program of fixed shapes, sampler and all: on CUDA a graph that runs without the host.

For a few sequences, launching the kernels of a step takes longer than running them. Here all that a step needs and
changes lies on the device (ids, places, how many are drawn, who has ended), so that a captured graph can be replayed
again and again; only now and then does the host ask whether all have ended, and it goes on before it has the answer.
On other devices the same program runs uncaptured, slower than `fused`: so its ids can be tested without a GPU.

Shapes: ``B`` sequences, ``S`` key length, ``D`` hidden_size, ``V`` vocab_size.

Source: the idea of a static cache and a step captured whole is gpt-fast's.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bpe_llama.model.backends.cpu.decoder import is_plain
from bpe_llama.model.backends.cpu.decoder_parts import shared_input
from bpe_llama.model.backends.cpu.weight_layout import decoder_layers
from bpe_llama.model.cache.kv_cache import CacheColumns, KVCache
from bpe_llama.model.device import HAS_TRITON
from bpe_llama.model.layers.attention import Attention
from bpe_llama.model.layers.attention_backends import Visible, eager, sdpa
from bpe_llama.model.layers.rope_scaling import LENGTH_DEPENDENT
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.quantization.quantize import Float8Linear, Int4Linear, Int8Linear
from bpe_llama.model.sampling import sample_logits
from bpe_llama.model.sampling.params import GenerationOptions, Sample
from bpe_llama.model.sampling.uniform import SEED_BITS, as_word

if TYPE_CHECKING:
    from bpe_llama.model.backends.cuda.triton_step import TritonStep

TRITON_LINEARS = (nn.Linear, Int8Linear, Int4Linear, Float8Linear)
SHORTEST = 256
"""Keys looked at in a step are rounded up to this times a power of two, or the cache's capacity: a graph for each."""


def why_not_captured(model: LlamaForCausalLM, cache: str = "full") -> str | None:
    """Return what keeps the model's step, with this form of cache, from having fixed shapes; None where nothing does.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, rope_parameters={"rope_type": "dynamic", "factor": 2.0})
        >>> why_not_captured(LlamaForCausalLM(config))
        "rotary positions of the kind 'dynamic' depend on the length"
    """
    config = model.config
    if cache != "full":
        return f"the cache is of the form {cache!r}"
    if config.num_local_experts:
        return "the experts of a mixture are chosen anew for every token"
    if config.position_encoding != "rotary":
        return f"position_encoding is {config.position_encoding!r}"
    if config.rope["rope_type"] in LENGTH_DEPENDENT:
        return f"rotary positions of the kind {config.rope['rope_type']!r} depend on the length"
    if any(isinstance(part, Attention) and part.backend not in (sdpa, eager) for part in model.modules()):
        return "the attention back end is neither 'sdpa' nor 'eager'"
    return None


def why_options_not_captured(options: GenerationOptions) -> str | None:
    """Return why a captured step cannot serve these options; None if it can.

    Example:
        >>> why_options_not_captured(GenerationOptions(no_repeat_ngram_size=3))
        'scores are changed by more than the sampler does, row by row on the host'
    """
    if options.prepares_scores:
        return "scores are changed by more than the sampler does, row by row on the host"
    if options.penalises and options.penalty_scope != "context":
        return f"penalty_scope is {options.penalty_scope!r}"
    if options.logprobs or options.top_logprobs:
        return "log-probabilities are kept"
    return None


def why_not_triton(model: LlamaForCausalLM) -> str | None:
    """Return what keeps a model, which can be captured, from running through `decode_on_cuda`; None where nothing does.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> why_not_triton(LlamaForCausalLM(config, dtype=torch.float16)) is None  # whose range is too small
        False
    """
    if not HAS_TRITON:
        return "triton is not installed"
    if model.dtype not in (torch.float32, torch.bfloat16):
        return f"the model is of {model.dtype}, and the kernels take float32 and bfloat16"
    if not is_plain(model):
        return "a layer is none of this package's dense ones, is hooked or adapted, or shares its weights"
    for layer in decoder_layers(model):
        for linears in (*shared_input(layer), [layer.self_attn.o_proj], [layer.mlp.down_proj], [model.lm_head]):
            names = {type(linear).__name__ for linear in linears}
            kinds = {_kind_of(linear) for linear in linears}
            if len(kinds) > 1 or type(linears[0]) not in TRITON_LINEARS:
                return f"the kernels have no product with layers that share an input and are {', '.join(sorted(names))}"
    return None


def _kind_of(linear: nn.Module) -> tuple[object, ...]:
    """Return what layers must share to lie side by side."""
    dtypes = tuple(tensor.dtype for tensor in (*linear.parameters(), *linear.buffers()))
    return type(linear), getattr(linear, "group_size", None), linear.bias is None, dtypes


class CapturedDecoder:
    """Runs sequences whose prompts are read to their ends.

    Args:
        model: One that `why_not_captured` has nothing against.
        cache: A full one, a slot for each sequence.
        backend: ``"triton"`` runs the layers through the kernels of `decode_on_cuda`, which lays weights side by side;
            another has `torch.compile` join the small operations of a step, through its back end of this name
            (``"inductor"``); None leaves them as they are.

    Weights may change between runs; where they have moved, graphs are captured anew.

    Raises:
        ValueError: If the model or the cache is of another kind, or not for the kernels (see `why_not_triton`).
    """

    def __init__(self, model: LlamaForCausalLM, cache: KVCache, backend: str | None = None) -> None:
        reason = why_not_captured(model)
        if reason is not None:
            raise ValueError(f"the step cannot be captured: {reason}")
        if type(cache) is not KVCache:
            raise ValueError(f"the step cannot be captured with a {type(cache).__name__}; expected a full cache")
        self.model = model
        self.cache = cache
        self.warm_up_seconds = 0.0
        """Spent on capturing, compiling included."""
        self.uncaptured: str | None = None if model.device.type == "cuda" else f"{model.device.type} has no graphs"
        """Why steps run one by one, if they do."""
        batch, capacity, device = cache.batch_size, cache.capacity, model.device
        self.ids_BS = torch.full((batch, capacity), -1, device=device)
        """Prompt and continuation, -1 behind them."""
        self.place_B, self.drawn_B, self.seed_B = (torch.zeros(batch, dtype=torch.long, device=device) for _ in "123")
        """Where the last id is; how many ids are new; the seeds' bits."""
        self.ended_B = torch.zeros(batch, dtype=torch.bool, device=device)
        self._key_S = torch.arange(capacity, device=device)
        self._is_eos_V = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=device)
        self._program: Callable[[int], None] = self._step
        self._kernels: TritonStep | None = None
        self._through_triton = backend == "triton"
        if backend is not None and not self._through_triton:
            self._program = torch.compile(self._step, backend=backend, fullgraph=True, dynamic=False)
        self._steps: dict[object, Callable[[], None]] = {}
        self._sampling: dict[object, dict[str, Any]] = {}
        self._known: list[object] = []
        self._look_at_the_weights()

    def _look_at_the_weights(self) -> None:
        """Let go of all that knows where weights were, if they are there no more."""
        if self._known and self._known == self._places_of_weights():
            return
        self._steps.clear()
        if self._through_triton:
            reason = why_not_triton(self.model)
            if reason is not None:
                raise ValueError(f"the step cannot run through Triton: {reason}")
            from bpe_llama.model.backends.cuda.triton_step import TritonStep

            self._kernels = TritonStep(self.model, self.cache)
        self._known = self._places_of_weights()

    def _places_of_weights(self) -> list[object]:
        """Return where weights are, how often buffers have changed, and which adapters take part.

        Some scales of few bits are kept as copies of buffers, and a graph keeps to the branches it was captured with.
        """
        places: list[object] = [weight.data_ptr() for weight in (*self.model.parameters(), *self.model.buffers())]
        places += [0 if buffer.is_inference() else buffer._version for buffer in self.model.buffers()]
        for module in self.model.modules():
            if hasattr(module, "active"):
                places.append((module.active, getattr(module, "unmerged", None) is None))
        return places

    @torch.no_grad()
    def run(self, samples: Sequence[Sample], check_every: int = 16) -> None:
        """Grow the sequences, in the order of their slots, until all have ended.

        Args:
            samples: With one new id each, or more, and not ended; of equal options but for the seed.
            check_every: Steps after which the host asks whether all have ended.

        Raises:
            ValueError: If the sequences do not fill the slots, their options differ, or ask for log-probabilities, or
                a row of the logits holds NaN, +inf or nothing finite.
        """
        self._begin(samples, check_every)
        start = time.perf_counter()
        limit = min(self.options.max_new_tokens - min(len(s.new_ids) for s in samples), self.cache.capacity)
        longest, done, asked = max(len(s.ids) for s in samples), 0, None
        while done < limit:
            count = min(check_every, limit - done)
            step = self._step_of(min(longest + done + count, self.cache.capacity))
            for _ in range(count):
                step()
            done += count
            if asked is not None and asked():  # of the round before: this one runs on meanwhile
                break
            asked = self._ask()
        counts = self.drawn_B.tolist()  # waits for the last steps
        self._hand_back(samples, counts, time.perf_counter() - start)

    def _begin(self, samples: Sequence[Sample], check_every: int) -> None:
        if len(samples) != self.cache.batch_size:
            raise ValueError(f"{len(samples)} sequences for {self.cache.batch_size} slots; expected one for each")
        if check_every < 1:
            raise ValueError(f"check_every is {check_every}; expected at least 1")
        if any(sample.unread or sample.finish or not sample.new_ids for sample in samples):
            raise ValueError("a sequence has ended, or its prompt is not read")
        kinds = {(s.options.sampling_key, s.options.max_new_tokens, s.options.min_new_tokens) for s in samples}
        if len(kinds) > 1 or len({sample.eos_ids for sample in samples}) > 1:
            raise ValueError("the sequences have unlike options; only seeds may differ in a captured step")
        if any(sample.options.logprobs for sample in samples):
            raise ValueError("logprobs is True, but a captured step keeps none")
        reasons = [reason for s in samples if (reason := why_options_not_captured(s.options)) is not None]
        if reasons:
            raise ValueError(f"the step cannot be captured: {reasons[0]}")
        self._look_at_the_weights()
        self.options = samples[0].options
        self._kind = kinds.pop()
        if self._kind not in self._sampling:  # graphs keep where these tensors are
            self._sampling[self._kind] = _on_device(self.options, self.model.config.vocab_size, self.model.device)
        self._is_eos_V.zero_()
        self._is_eos_V[list(samples[0].eos_ids)] = True
        self.ids_BS.fill_(-1)
        for slot, sample in enumerate(samples):
            self.ids_BS[slot, : len(sample.ids)] = torch.tensor(sample.ids)
        self.place_B.copy_(torch.tensor([len(sample.ids) - 1 for sample in samples]))
        self.drawn_B.copy_(torch.tensor([len(sample.new_ids) for sample in samples]))
        self.seed_B.copy_(torch.stack([as_word((sample.options.seed or 0) & SEED_BITS, "cpu") for sample in samples]))
        self.ended_B.zero_()

    def _step(self, end: int) -> None:
        """Add an id to every sequence that has not ended, looking at the first ``end`` columns of the cache."""
        options = self.options
        last_B1 = self.ids_BS.gather(1, self.place_B[:, None])
        logits_BV = self._logits(last_B1[:, 0].clamp(min=0), end)
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
        goes_on_B = (~self.ended_B).long()
        self.place_B += goes_on_B
        self.drawn_B += goes_on_B
        self.ids_BS.scatter_(1, self.place_B[:, None], torch.where(self.ended_B, last_B1[:, 0], new_B)[:, None])
        self.ended_B |= (new_B < 0) | self._is_eos_V[new_B.clamp(min=0)]
        self.ended_B |= (self.drawn_B >= options.max_new_tokens) | (self.place_B >= self.cache.capacity - 1)

    def _logits(self, ids_B: Tensor, end: int) -> Tensor:
        """Return the scores of what follows each id, (B, V), by kernels or the model's own modules."""
        if self._kernels is not None:
            return self._kernels.logits(ids_B, self.place_B)
        stack, place_B1 = self.model.model, self.place_B[:, None]
        mask_BS = self._key_S[:end] <= place_B1
        if self.model.config.sliding_window is not None:
            mask_BS = mask_BS & (self._key_S[:end] > place_B1 - self.model.config.sliding_window)
        visible, places = Visible(mask=mask_BS[:, None, None]), CacheColumns(0, end, place_B1)
        x_B1D = stack.embed_tokens(ids_B[:, None])
        rotation = stack.rotary_emb(place_B1)
        for layer in stack.layers:
            x_B1D = layer(x_B1D, rotation, visible, self.cache, places)
        logits_BV: Tensor = self.model.lm_head(stack.norm(x_B1D))[:, 0]
        return logits_BV

    def _step_of(self, longest: int) -> Callable[[], None]:
        """Return the step that looks at so many columns at least, captured where that can be."""
        end = SHORTEST
        while end < longest:
            end *= 2
        # The kernels look at as many keys as there are, whatever the number.
        end = min(end, self.cache.capacity) if self._kernels is None else self.cache.capacity
        if (end, self._kind) not in self._steps:
            start = time.perf_counter()
            step = self._captured(end) if self.uncaptured is None else partial(self._program, end)
            self._steps[end, self._kind] = step
            self.warm_up_seconds += time.perf_counter() - start
        return self._steps[end, self._kind]

    def _captured(self, end: int) -> Callable[[], None]:
        state = (self.ids_BS, self.place_B, self.drawn_B, self.ended_B)
        before = [tensor.clone() for tensor in state]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self.model.device):
                aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                aside.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(aside):  # compiles kernels and takes memory, which a capture must not
                    self._program(end)
                torch.cuda.current_stream().wait_stream(aside)
                with torch.cuda.graph(graph):
                    self._program(end)
        except RuntimeError as error:
            self.uncaptured = str(error).partition("\n")[0]
            warnings.warn(f"the step could not be captured and runs kernel by kernel: {self.uncaptured}", stacklevel=4)
        for tensor, held in zip(state, before, strict=True):
            tensor.copy_(held)
        return graph.replay if self.uncaptured is None else partial(self._program, end)

    def _ask(self) -> Callable[[], bool]:
        """Ask the device, without waiting, whether all have ended; return what waits for the answer."""
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

    def _hand_back(self, samples: Sequence[Sample], counts: Sequence[int], seconds: float) -> None:
        for slot, (sample, count) in enumerate(zip(samples, counts, strict=True)):
            first = len(sample.prompt)
            sample.new_ids[:] = self.ids_BS[slot, first : first + count].tolist()
            if -1 in sample.new_ids:
                raise ValueError(f"row {slot} of the logits holds NaN, +inf or nothing finite")
            sample.decode_seconds += seconds
            ended = "length" if count == sample.options.max_new_tokens else "context"
            sample.finish = "eos" if sample.new_ids[-1] in sample.eos_ids else ended
            self.cache.lengths[slot] = len(sample.ids) - 1


def _on_device(options: GenerationOptions, vocab_size: int, device: torch.device) -> dict[str, Any]:
    """Return `GenerationOptions.sampling` with biases, (V,), and ids as tensors, which a graph cannot bring itself."""
    values = options.sampling
    if values["logit_bias"] is not None:
        bias_V = torch.zeros(vocab_size)
        for biased, bias in values["logit_bias"].items():
            bias_V[biased] = bias
        values["logit_bias"] = bias_V.to(device)
    for name in ("banned_ids", "allowed_ids"):
        if values[name] is not None:
            values[name] = torch.tensor(list(values[name]), dtype=torch.int64, device=device)
    return values
