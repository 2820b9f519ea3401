"""The step of fixed shapes against plain generation; on CUDA the same as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.backends.cuda.graph import CudaGraphDecoder
from bpe_llama.model.cache.quantized import QuantizedCache
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.sampling.sequence import Sequence
from tests.model.generation.naive import finish

Make = Callable[..., LlamaForCausalLM]

OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.8, "top_k": 20},
    {"temperature": 1.2, "repetition_penalty": 1.3, "frequency_penalty": 0.2},
    {"temperature": 0.7, "min_new_tokens": 9},
    {"temperature": 0.9, "typical_p": 0.8, "logit_bias": {5: 2.0, 7: -3.0}, "banned_ids": [9, 11]},
    {"temperature": 1.1, "allowed_ids": range(3, 40), "preset": "llama_cpp"},
]


def both(
    model: LlamaForCausalLM, ids: Tensor, check_every: int, backend: str | None = None, **options: Any
) -> tuple[list[Sequence], list[Sequence]]:
    """Return what an engine makes of three prompts of unequal length, and what the CUDA graph's program does."""
    prompts = [ids[0].tolist(), ids[1, :3].tolist(), ids[2, :11].tolist()]
    wanted = [GenerationOptions(seed=seed, **options) for seed in (2**64 - 1, 0, 7)]
    engines = [Engine(model, 3, 48, cuda_graph=False) for _ in range(2)]
    plain, by_graph = (engine.prefill(prompts, wanted) for engine in engines)
    while engines[0].step():
        pass
    decoder = CudaGraphDecoder(model, engines[1].cache, backend)
    decoder.run(by_graph, check_every)
    assert (decoder.fallback_reason is None) == (model.device.type == "cuda")
    assert decoder.warm_up_seconds > 0
    return plain, by_graph


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("check_every", [1, 5, 64])
@pytest.mark.parametrize("changes", [{}, {"sliding_window": 6, "attention_bias": True, "tie_word_embeddings": True}])
def test_ids_are_those_of_plain_generation(
    tiny_model: Make, ids: Tensor, options: dict[str, Any], check_every: int, changes: dict[str, Any]
) -> None:
    model = tiny_model(eos_token_id=[2, 7, 8, 9, 10], **changes)
    for found, expected in zip(*both(model, ids, check_every, max_new_tokens=20, **options), strict=True):
        assert (found.new_ids, found.finish_reason) == (expected.new_ids, expected.finish_reason)


def test_nothing_in_a_step_waits_for_the_host(tiny_model: Make, ids: Tensor) -> None:
    """A program compiled whole cannot read a value back, nor branch on one."""
    model = tiny_model(eos_token_id=[2, 7, 8, 9, 10])
    options = {"temperature": 1.2, "top_k": 30, "frequency_penalty": 0.2, "min_new_tokens": 4, "max_new_tokens": 12}
    options |= {"logit_bias": {5: 2.0}, "banned_ids": [9]}
    for found, expected in zip(*both(model, ids, 4, backend="eager", **options), strict=True):
        assert (found.new_ids, found.finish_reason) == (expected.new_ids, expected.finish_reason)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and none is here")
@pytest.mark.parametrize(  # a compilation takes half a minute
    ("backend", "options"), [*((None, each) for each in OPTIONS), *(("inductor", each) for each in OPTIONS[:3:2])]
)
def test_a_cuda_graph_gives_the_ids_of_plain_generation(
    tiny_model: Make, ids: Tensor, options: dict[str, Any], backend: str | None
) -> None:
    model = tiny_model(eos_token_id=[2, 7, 8, 9, 10]).cuda()
    for found, expected in zip(*both(model, ids, 5, backend, max_new_tokens=20, **options), strict=True):
        assert (found.new_ids, found.finish_reason) == (expected.new_ids, expected.finish_reason)


def test_the_context_ends_a_sequence_and_a_decoder_serves_again(model: LlamaForCausalLM, ids: Tensor) -> None:
    engine = Engine(model, 1, 24)
    decoder = CudaGraphDecoder(model, engine.cache)
    for seed in (1, 2):
        wanted = GenerationOptions(max_new_tokens=50, seed=seed)
        (found,) = engine.prefill([ids[seed].tolist()], [wanted])
        decoder.run([found])
        engine.abort(found)
        (expected,) = engine.prefill([ids[seed].tolist()], [wanted])
        finish(engine)
        assert (found.new_ids, found.finish_reason) == (expected.new_ids, "length")
    assert len(decoder._steps) == 1


def test_generate_uses_a_cuda_graph_where_it_can(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(eos_token_id=[2, 7, 8, 9, 10])
    for options in ({"max_new_tokens": 1}, {"max_new_tokens": 30, "num_return_sequences": 2}):
        expected = model.generate(ids, seed=4, temperature=1.3, **options)
        assert torch.equal(model.generate(ids, seed=4, temperature=1.3, cuda_graph=True, **options), expected)
    with pytest.warns(UserWarning, match="without a CUDA graph: the cache is of the form 'int8'"):
        model.generate(ids, max_new_tokens=2, cuda_graph=True, cache="int8")
    dynamic = tiny_model(rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.warns(UserWarning, match="without a CUDA graph: rotary positions of the kind 'dynamic'"):
        found = dynamic.generate(ids, max_new_tokens=5, cuda_graph=True)
    assert torch.equal(found, dynamic.generate(ids, max_new_tokens=5))
    with pytest.raises(ValueError, match="a beam search does not use one"):
        model.generate(ids, num_beams=2, cuda_graph=True)


def test_refusals(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(eos_token_id=None)
    with pytest.raises(ValueError, match="over a QuantizedCache; expected a full cache"):
        CudaGraphDecoder(model, QuantizedCache(model.config))
    with pytest.raises(ValueError, match="no CUDA graph: the experts"):
        CudaGraphDecoder(tiny_model(num_local_experts=2), Engine(model).cache)
    engine = Engine(model, 2)
    decoder = CudaGraphDecoder(model, engine.cache)
    first, second = engine.prefill([[5], [6]], [GenerationOptions(), GenerationOptions(temperature=0.0)])
    for sequences, message in (([first], "1 sequences for 2 slots"), ([first, second], "only seeds may differ")):
        with pytest.raises(ValueError, match=message):
            decoder.run(sequences)
    with pytest.raises(ValueError, match="check_every is 0"):
        decoder.run([first, first], check_every=0)
    first.finish_reason = "stop"
    with pytest.raises(ValueError, match="has ended"):
        decoder.run([first, second])
    with pytest.raises(ValueError, match="logprobs"):
        decoder.run([Sequence([5], GenerationOptions(logprobs=True), (), [6])] * 2)
