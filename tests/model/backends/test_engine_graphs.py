"""An engine that decodes by graphs of a few batch sizes, against one that runs the modules.

Without a GPU a recorded list of operations stands in for a graph: replaying it runs no code of the step, so a value of
the host that a graph would repeat is repeated here, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.backends import forward
from bpe_llama.model.backends.cuda import decoder
from bpe_llama.model.backends.cuda.dispatch import batch_sizes, unsupported_by_engine
from bpe_llama.model.backends.cuda.memory import step_bytes
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.sampling.sequence import Sequence

Make = Callable[..., LlamaForCausalLM]


class Recorded:
    """The operations of a program on tensors that stay."""

    def __init__(self, program: Callable[[], Tensor]) -> None:
        self.operations = make_fx(program)()
        self.outputs = torch.empty_like(program())

    def replay(self) -> None:
        self.outputs.copy_(self.operations())


@pytest.fixture
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engines on the CPU capture: a recording in place of a graph."""

    class OnCpu(decoder.CudaDecoder):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.fallback_reason = None

    def captured(program: Callable[[], Tensor], device: torch.device, pool: Any) -> tuple[Recorded, Tensor]:
        graph = Recorded(program)
        return graph, graph.outputs

    monkeypatch.setattr(forward, "GRAPH_DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(forward, "CudaDecoder", OnCpu)
    monkeypatch.setattr(decoder, "captured", captured)


def served(engine: Engine, prompts: list[list[int]], **options: Any) -> list[Sequence]:
    """Return the sequences of requests that join two a step, each with another length; one is aborted."""
    waiting = [
        (prompt, GenerationOptions(seed=number, max_new_tokens=2 + 5 * number % 17, **options))
        for number, prompt in enumerate(prompts)
    ]
    sequences: list[Sequence] = []
    while waiting or engine.has_unfinished_requests():
        for prompt, chosen in waiting[:2]:
            sequences.append(engine.add_request(prompt, chosen))
        del waiting[:2]
        engine.step()
        if len(sequences) == 8 and sequences[5].new_ids and not sequences[5].finish_reason:
            engine.abort(sequences[5])
    return sequences


def requests() -> list[list[int]]:
    """Return prompts of 1 to 30 ids; two are equal, so that one request takes over the other's slot."""
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 97, (1 + 7 * n % 30,), generator=generator).tolist() for n in range(13)]
    prompts[9] = prompts[8]
    return prompts


VARIANTS: list[dict[str, Any]] = [
    {"attention_bias": True, "tie_word_embeddings": True},
    {"sliding_window": 6},
]


@pytest.mark.usefixtures("_recorded")
@pytest.mark.parametrize("changes", VARIANTS)
def test_requests_that_join_and_leave_get_the_ids_of_the_plain_engine(
    tiny_model: Make, changes: dict[str, Any]
) -> None:
    model = tiny_model(eos_token_id=[2, 7, 8], num_hidden_layers=2, **changes)
    plain, graphs = (Engine(model, 11, 60, prefill_chunk=16, cuda_graph=flag) for flag in (False, True))
    options = {"temperature": 0.9, "top_p": 0.95}
    expected, found = (served(engine, requests(), **options) for engine in (plain, graphs))
    assert [(s.new_ids, s.finish_reason) for s in found] == [(s.new_ids, s.finish_reason) for s in expected]
    used = graphs._refreshed.graphs
    assert plain._refreshed.graphs is None
    assert used is not None and used.capture_seconds > 0
    assert {size for size, _ in used._steps} == set(batch_sizes(11)) == {1, 2, 4, 8, 11}


@pytest.mark.usefixtures("_recorded")
def test_slots_grow_weights_change_and_slots_keep_their_prefix(tiny_model: Make) -> None:
    """Rows without a sequence must not write to slots that hold a prefix for the next prompt."""
    model = tiny_model(eos_token_id=None, num_hidden_layers=1)
    engines = [Engine(model, 4, 20, cuda_graph=flag) for flag in (False, True)]
    prompts = requests()[:3]
    for change in ("slots grow", "weights change", "nothing"):
        found = []
        for engine in engines:
            wanted = [GenerationOptions(seed=n, max_new_tokens=3 + n) for n in range(3)]
            sequences = engine.prefill([prompt[:12] for prompt in prompts], wanted)
            while engine.step():
                pass
            (again,) = engine.prefill([sequences[2].ids], [GenerationOptions(max_new_tokens=4)])
            while engine.step():
                pass
            found.append(([s.new_ids for s in sequences], again.new_ids, again.num_cached_tokens))
        assert found[0] == found[1], change
        if change == "slots grow":
            for engine in engines:
                engine.reserve(40)
        elif change == "weights change":
            with torch.no_grad():
                model.lm_head.weight.copy_(model.lm_head.weight.flip(0))


@pytest.mark.usefixtures("_recorded")
def test_a_failed_capture_is_told_and_steps_run_without_a_graph(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(decoder, "captured", fails)
    model = tiny_model(eos_token_id=None)
    engine = Engine(model, 2, 20)
    engine.add_request([5, 6], GenerationOptions(max_new_tokens=4))
    with pytest.warns(UserWarning, match="kernel by kernel: operation not permitted when stream is capturing$"):
        while engine.step():
            pass


def test_what_keeps_an_engine_from_graphs_is_named(tiny_model: Make) -> None:
    model = tiny_model()
    full = Engine(model).cache
    assert unsupported_by_engine(model, full) is None
    assert unsupported_by_engine(model, Engine(model, cache="int8").cache) == "the cache is a QuantizedCache"
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert unsupported_by_engine(model, full) == "model.layers.1.mlp has hooks"
    assert unsupported_by_engine(tiny_model(num_local_experts=2), full) == (
        "the experts of a mixture are chosen anew for every token"
    )


@pytest.mark.usefixtures("_recorded")
def test_a_step_without_memory_is_refused_with_its_sizes(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    engine = Engine(model, 3)
    need = sum(step_bytes(model.config, 3, torch.float32).values())
    monkeypatch.setattr("bpe_llama.model.device.free_memory", lambda device: need)
    engine.refresh()
    monkeypatch.setattr("bpe_llama.model.device.free_memory", lambda device: need - 1)
    with pytest.raises(ValueError, match=r"a CUDA graph of 3 sequences, .* GB of logits and .* GB of buffers, takes"):
        decoder.CudaDecoder(model, engine.cache)
    with pytest.raises(ValueError, match=r"a model with weights in float32 takes .* GB, but .* GB are free"):
        type(model)(model.config)


def test_a_server_counts_weights_slots_and_graphs_before_it_takes_them(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bpe_llama.model.server.scheduler import memory

    config = tiny_model().config
    empty = LlamaForCausalLM(config, device="meta", dtype=torch.bfloat16)
    weights = {id(tensor): tensor.nbytes for tensor in (*empty.parameters(), *empty.buffers())}
    slots = 2 * config.num_hidden_layers * 5 * config.kv_heads * 32 * config.head_size * 2
    sizes = [sum(weights.values()), slots, *step_bytes(config, 5, torch.bfloat16).values()]
    for free in (sum(sizes), sum(sizes) - 1):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        if free == sum(sizes):
            memory.check_fits(empty, torch.device("cuda"), slots=5, max_length=32)
            continue
        with pytest.raises(ValueError, match=r"GB of logits of CUDA graphs, .* GB of buffers of CUDA graphs take"):
            memory.check_fits(empty, torch.device("cuda"), slots=5, max_length=32)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and none is here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_engine_on_cuda_gives_the_ids_of_the_plain_engine(tiny_model: Make, dtype: torch.dtype) -> None:
    """In bfloat16 products of another order may round an id's score past another's, so the first ids are compared."""
    model = tiny_model(eos_token_id=None, hidden_size=64, num_attention_heads=4).to("cuda", dtype)
    plain, graphs = (Engine(model, 11, 60, prefill_chunk=16, cuda_graph=flag) for flag in (False, True))
    expected, found = (served(engine, requests(), temperature=0.0) for engine in (plain, graphs))
    used = graphs._refreshed.graphs
    assert used is not None and used.fallback_reason is None
    assert {size for size, _ in used._steps} == set(batch_sizes(11))
    same = [ours.new_ids == theirs.new_ids for ours, theirs in zip(found, expected, strict=True)]
    assert all(same) if dtype == torch.float32 else sum(same) > len(same) // 2, same
