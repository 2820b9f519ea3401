"""The CPU decoder against the model itself, for every case of every model family that it runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from bpe_llama.model import KVCache, LlamaConfig, LlamaForCausalLM, quantize
from bpe_llama.model.backends.cpu.decoder import CpuDecoder
from bpe_llama.model.backends.cpu.dispatch import can_decode
from bpe_llama.model.backends.cuda.dispatch import unsupported_by_triton
from bpe_llama.model.cache import QuantizedCache, SlidingWindowCache
from bpe_llama.model.device import HAS_TRITON
from tests.model.backends.test_ragged_batch import differences, drawn
from tests.parity.model_families.cases import MODEL_FAMILIES, SHAPE

BY_MODULES = {"deepseek_v2", "deepseek_v3", "llama4_text"}
"""Families with a layer that the decoder does not compute; they run by the modules of `llama.py`."""
MIXTRAL = {"num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 9}


def _runs_by_modules(name: str, case: dict[str, Any]) -> bool:
    return name in BY_MODULES or ("gelu" in (case.get("hidden_act"), case.get("hidden_activation")) and name != "gemma")


EVERY_CASE = [
    (name, case, f"{name}-{number}")
    for name, family in MODEL_FAMILIES.items()
    for number, case in enumerate(family.cases)
] + [("mixtral", MIXTRAL, "mixtral")]
CASES = [pytest.param(name, case, id=label) for name, case, label in EVERY_CASE if not _runs_by_modules(name, case)]
OTHERS = [pytest.param(name, case, id=label) for name, case, label in EVERY_CASE if _runs_by_modules(name, case)]
ROWS = [([0], [7]), ([5], [1]), ([7, 3, 0], [1, 1, 1]), ([6, 0, 9, 2], [1, 9, 3, 1])]
"""Tokens in the cache, and new tokens, of each slot: a prompt, a step, a step of several rows, a ragged batch."""


def build(name: str, case: dict[str, Any]) -> LlamaForCausalLM:
    """Return a model with norms and biases that would show if one were left out, and a vocabulary of 97."""
    config = LlamaConfig.from_dict(SHAPE | {"vocab_size": 97} | case | {"model_type": name})
    model = LlamaForCausalLM(config, seed=3).eval()
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.mark.parametrize(("name", "case"), CASES)
def test_logits_and_cache_are_the_models(name: str, case: dict[str, Any]) -> None:
    model = build(name, case)
    assert can_decode(model)
    for held, new in ROWS:
        logits, in_cache = differences(model, held, new)
        assert logits < 2e-5 and in_cache < 2e-4


@pytest.mark.parametrize(("name", "case"), CASES)
def test_float32_logits_are_batch_invariant(name: str, case: dict[str, Any]) -> None:
    model = build(name, case)
    ids, decoder = drawn(20, 1), CpuDecoder(model)
    alone, beside = (KVCache(model.config, slots, 32) for slots in (1, 2))
    for cache in (alone, beside):
        cache.prompt_lengths[:] = [len(ids)] * cache.batch_size
    whole = decoder([ids, ids[::-1]], beside, every=True)[: len(ids)].clone()
    one_by_one = torch.cat([decoder([[token_id]], alone).clone() for token_id in ids])
    torch.testing.assert_close(one_by_one, whole, rtol=0, atol=0)


@pytest.fixture(params=[4, 100])
def native_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Set up to how many rows native kernels run the layers, and PyTorch with more."""
    monkeypatch.setattr("bpe_llama.model.backends.cpu.decoder.native_rows", lambda linears: request.param)
    yield request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_native_kernels_and_pytorch_compute_the_same(
    name: str, case: dict[str, Any], dtype: torch.dtype, native_rows: int
) -> None:
    model = build(name, case).to(dtype)
    exact = copy.deepcopy(model).float()
    ids = torch.randint(0, 97, (12, 20), generator=torch.Generator().manual_seed(3))
    ours, theirs = [], []
    for rows, length in ((1, 19), (6, 19), (12, 17), (12, 0)):
        cache = KVCache(model.config, rows, 32, dtype=dtype)
        if length:
            model(ids[:rows, :length], past_key_values=cache)
        found = CpuDecoder(model)(ids[:rows, length:].tolist(), cache)
        truth, plain = exact(ids[:rows]).logits[:, -1], model(ids[:rows]).logits[:, -1]
        if dtype == torch.float32:
            assert float((found - truth).abs().max() / truth.abs().max()) < 2e-5
        ours.append((found - truth).abs().mean(-1))
        theirs.append((plain - truth).abs().mean(-1))
    if dtype == torch.bfloat16:
        # Of experts not the mean: where two are as good, rounding may choose either.
        typical = torch.median if model.config.num_local_experts else torch.mean
        assert typical(torch.cat(ours)) < 1.3 * typical(torch.cat(theirs))


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_quantized_layers_are_the_models(name: str, case: dict[str, Any], kind: str) -> None:
    if "shared_expert_intermediate_size" in case:
        case = case | {"shared_expert_intermediate_size": 64}  # groups of 32 divide it
    model = quantize.quantize(build(name, case), kind)
    assert can_decode(model)
    for held, new in ROWS:
        assert differences(model, held, new)[0] < 2e-5


@pytest.mark.parametrize("form", [QuantizedCache, SlidingWindowCache])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_other_forms_of_cache(name: str, case: dict[str, Any], form: type[KVCache]) -> None:
    model = build(name, case)
    if form is SlidingWindowCache and None in model.config.windows:
        pytest.skip("some layers attend to all tokens")
    ids = torch.randint(0, 97, (3, 30), generator=torch.Generator().manual_seed(2))
    caches = [form(model.config, 3, 40) for _ in range(2)]
    decoder = CpuDecoder(model)
    for cache in caches:
        model(ids[:, :6], past_key_values=cache)
    for place in range(6, 30):
        expected = model(ids[:, place : place + 1], past_key_values=caches[0]).logits[:, 0]
        found = decoder(ids[:, place : place + 1].tolist(), caches[1])
        worst = 5e-2 if form is QuantizedCache else 2e-5  # a rounding difference may become one of an int8 code
        assert float((found - expected).abs().max() / expected.abs().max()) < worst


@pytest.mark.parametrize(("name", "case"), CASES)
def test_changed_weights_are_noticed(name: str, case: dict[str, Any]) -> None:
    model = build(name, case)
    decoder = CpuDecoder(model)
    ids = [[5, 6, 7]]
    for weight in model.parameters():
        weight.data.mul_(0.7)  # in a way that leaves no trace
    decoder.refresh()
    found, expected = decoder(ids, KVCache(model.config, 1, 4), every=True), model(torch.tensor(ids)).logits[0]
    assert float((found - expected).abs().max() / expected.abs().max()) < 2e-5


@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, which comes with torch for CUDA on Linux")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen3", "the kernels do not compute a norm of queries and keys"),
        ("olmo2", "a norm of queries and keys, no norm before attention or the MLP, a norm after attention or the MLP"),
        ("gemma", "the kernels do not compute a norm with float32 factors, the activation gelu_tanh"),
        ("gemma3_text", "the layers differ in their sliding windows"),
        ("granite", "the kernels do not compute scaled or capped logits"),
        ("stablelm", "the kernels do not compute LayerNorm"),
        ("cohere", "the kernels do not compute scaled or capped logits"),
        ("qwen3_moe", "the kernels do not compute a mixture of experts, a norm of queries and keys"),
        ("deepseek_v2", "a layer is none that the decoders describe"),
    ],
)
def test_triton_kernels_refuse_what_they_do_not_compute(name: str, said: str) -> None:
    assert said in (unsupported_by_triton(build(name, MODEL_FAMILIES[name].cases[0])) or "")


@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, which comes with torch for CUDA on Linux")
@pytest.mark.parametrize("name", ["qwen2", "phi3", "seed_oss"])
def test_triton_kernels_compute_biases_and_fused_matrices(name: str) -> None:
    assert unsupported_by_triton(build(name, MODEL_FAMILIES[name].cases[0])) is None


@pytest.mark.parametrize(("name", "case"), OTHERS)
def test_others_run_by_their_modules(name: str, case: dict[str, Any]) -> None:
    assert not can_decode(build(name, case))


def test_replaced_methods_are_left_to_the_modules() -> None:
    for path, method in (("model.layers.1.self_attn", "project"), ("model.layers.2", "feed_forward"), ("", "logits")):
        model = build("qwen3", {})
        part: Any = model.get_submodule(path)
        setattr(part, method, partial(getattr(part, method)))
        assert not can_decode(model), path


@pytest.mark.parametrize(("name", "option"), [("seed_oss", "residual_dropout"), ("phi3", "resid_pdrop")])
def test_dropout_in_training_is_left_to_the_modules(name: str, option: str) -> None:
    model = build(name, {"attention_dropout": 0.0, option: 0.1})
    assert can_decode(model) and not can_decode(model.train())
