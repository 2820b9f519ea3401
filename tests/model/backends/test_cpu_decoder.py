"""The CPU decoder against the model itself, in every shape; what the weight layout leaves unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bpe_llama._core import simd_tiers
from bpe_llama.model import KVCache, LlamaForCausalLM, lora, quantize
from bpe_llama.model.backends.adjacent import adjacent
from bpe_llama.model.backends.cpu.decoder import CpuDecoder
from bpe_llama.model.backends.cpu.dispatch import FEW_KEYS, FEW_ROWS, NATIVE_ROWS, can_decode
from bpe_llama.model.backends.cpu.native import Rows
from bpe_llama.model.backends.cpu.weight_layout import lay_out_weights
from bpe_llama.model.cache import QuantizedCache
from bpe_llama.model.generation.generate import Engine, GenerationOptions
from bpe_llama.model.llama import DecoderLayer
from bpe_llama.model.quantization.layers import QuantizedLinear
from tests.model.generation.naive import finish

Make = Callable[..., LlamaForCausalLM]

VARIANTS: list[dict[str, Any]] = [
    {},
    {"attention_bias": True, "mlp_bias": True},
    {"sliding_window": 5},
    {"tie_word_embeddings": True, "num_key_value_heads": 6},
    {"head_dim": 16, "num_key_value_heads": 1},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 8},
]


def uneven(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Give norms and biases values that would show if one were left out."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight += 0.2 * torch.randn(weight.shape, generator=generator).to(weight.dtype)
    return model


def differences(model: LlamaForCausalLM, held: list[int], length: int) -> tuple[float, float]:
    """Return how far the logits, and what the cache then holds, are from the model's own."""
    generator = torch.Generator().manual_seed(sum(held) + length)
    ids = torch.randint(0, 97, (len(held), max(held) + length), generator=generator)
    caches = [KVCache(model.config, len(held), 32, dtype=model.dtype) for _ in range(2)]
    for cache in caches:
        if max(held):
            model(ids[:, : max(held)], past_key_values=cache)
            cache.truncate(held)
    new = ids[:, max(held) :]
    expected = model(new, past_key_values=caches[0]).logits
    found = CpuDecoder(model)(new.tolist(), caches[1], every=True).view(expected.shape)
    assert caches[0].lengths == caches[1].lengths == [before + length for before in held]
    in_cache = max(
        float((caches[0].store[:, :, slot, :, :end] - caches[1].store[:, :, slot, :, :end]).abs().max())
        for slot, end in enumerate(caches[0].lengths)
    )
    return float((found - expected).abs().max() / expected.abs().max()), in_cache


@settings(max_examples=60, deadline=None)
@given(
    changes=st.sampled_from(VARIANTS),
    held=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    length=st.integers(1, 5),
    seed=st.integers(0, 3),
)
def test_logits_and_cache_are_the_models(
    tiny_model: Make, changes: dict[str, Any], held: list[int], length: int, seed: int
) -> None:
    with torch.no_grad():
        model = uneven(tiny_model(seed=seed, **changes))
        assert can_decode(model)
        logits, in_cache = differences(model, held, length)
        assert logits < 2e-5 and in_cache < 2e-4


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("skip", [("lm_head",), ("lm_head", "k_proj", "up_proj"), ()])
def test_quantised_layers_are_the_models(
    tiny_model: Make, kind: str, dtype: torch.dtype, skip: tuple[str, ...]
) -> None:
    model = tiny_model(hidden_size=64, num_attention_heads=8, intermediate_size=96).to(dtype)
    quantize.quantize(model, kind, skip=skip)
    assert can_decode(model)
    logits, _ = differences(model, [7, 3], 1)
    assert logits < (1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("changes", VARIANTS[:3])
def test_bfloat16_is_as_near_to_float32_as_the_model_is(tiny_model: Make, changes: dict[str, Any]) -> None:
    half = uneven(tiny_model(**changes)).to(torch.bfloat16)
    exact = copy.deepcopy(half).float()
    ids = torch.randint(0, 97, (16, 12), generator=torch.Generator().manual_seed(3))
    truth, plain = exact(ids).logits[:, -1], half(ids).logits[:, -1]
    cache = KVCache(half.config, 16, 32, dtype=torch.bfloat16)
    half(ids[:, :-1], past_key_values=cache)
    found = CpuDecoder(half)(ids[:, -1:].tolist(), cache)
    assert (found - truth).abs().mean() < 1.1 * (plain - truth).abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("few", "rows"), [(8, 1), (8, 8), (8, 9), (48, 9), (48, 48), (48, 49), (100, 70)])
def test_few_rows_and_many_are_the_same_model(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, few: int, rows: int
) -> None:
    monkeypatch.setattr("bpe_llama.model.backends.cpu.decoder.native_rows", lambda linears: few)
    model = uneven(tiny_model(attention_bias=True, mlp_bias=True)).to(dtype)
    ids = [[5 + row] for row in range(rows)]
    found = CpuDecoder(model)(ids, KVCache(model.config, rows, 4, dtype=dtype))
    # What few rows pass from product to product stays float32.
    assert found.dtype == (torch.float32 if rows <= few else dtype)
    expected = copy.deepcopy(model).float()(torch.tensor(ids)).logits
    worst = 2e-5 if dtype == torch.float32 else 0.03
    assert float((found.float() - expected[:, 0]).abs().max() / expected.abs().max()) < worst


@pytest.mark.parametrize("keys", [FEW_KEYS, FEW_KEYS + 1])
@pytest.mark.parametrize("form", ["full", "int8"])
def test_torch_keeps_one_thread_for_few_keys_and_has_all_back(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch, keys: int, form: str
) -> None:
    model = tiny_model(max_position_embeddings=2 * FEW_KEYS)
    cache = (QuantizedCache if form == "int8" else KVCache)(model.config, 1, keys)
    cache.lengths[0] = keys - 1
    decoder = CpuDecoder(model)
    used: list[int] = []
    torch_threads: list[int] = []

    def into(x: Rows, out: Rows, threads: int, add: bool = False) -> None:
        used.append(threads)
        torch_threads.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(decoder._native.layers[0].mlp.down, "into", into)
    torch.set_num_threads(2)
    with pytest.raises(KeyboardInterrupt):
        decoder([[7]], cache)
    assert torch.get_num_threads() == 2
    assert (used, torch_threads) == ([2], [2 if form == "int8" and keys > FEW_KEYS else 1])


def test_memory_is_kept_for_few_rows_alone(tiny_model: Make) -> None:
    decoder = CpuDecoder(tiny_model())
    for rows in [*range(1, 2 * FEW_ROWS), 1]:
        found = decoder([[5]] * rows, KVCache(decoder.model.config, rows, 4))
        torch.testing.assert_close(found, decoder([[5]], KVCache(decoder.model.config, 1, 4)).expand_as(found))
        assert len(decoder._few) <= FEW_ROWS and len(decoder._many) <= 1 and len(decoder._kept_logits) <= FEW_ROWS


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_copy_of_a_quantised_layer_has_weights_of_its_own(tiny_model: Make, kind: str) -> None:
    shape = {"hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 96}
    model = quantize.quantize(tiny_model(**shape), kind)
    before = CpuDecoder(model)([[5]], KVCache(model.config, 1, 4)).clone()
    model(torch.tensor([[5]]))  # the layers have made their kernels
    copied = copy.deepcopy(model)
    for buffer in model.model.layers.buffers():
        buffer.zero_()
    assert torch.equal(CpuDecoder(copied)([[5]], KVCache(model.config, 1, 4)), before)
    assert not torch.equal(CpuDecoder(model)([[5]], KVCache(model.config, 1, 4)), before)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_a_changed_quantised_model_is_noticed(tiny_model: Make, kind: str, dtype: torch.dtype | None) -> None:
    shape = {"hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 96}
    model, other = (quantize.quantize(tiny_model(seed=seed, **shape), kind).to(dtype) for seed in (0, 1))
    decoder = CpuDecoder(model)

    def check() -> None:
        expected = quantize.dequantize(copy.deepcopy(model)).float()(torch.tensor([[5, 6]])).logits
        decoder.refresh()
        for found in (
            decoder([[5, 6]], KVCache(model.config, 1, 4, dtype=model.dtype), every=True),
            model(torch.tensor([[5, 6]])).logits,
        ):
            assert float((found - expected).abs().max() / expected.abs().max()) < (
                0.05 if dtype == torch.bfloat16 else 1e-5
            )

    check()
    model.load_state_dict(other.state_dict())  # in place
    check()
    name = "scale" if kind == "int8" else "scale_and_zero"
    for module in model.modules():
        if isinstance(module, QuantizedLinear):  # replaced, and the codes left where they are
            setattr(module, name, getattr(module, name) * 2)
    check()


def strided(weight: Tensor) -> Tensor:
    return torch.stack((weight, weight), -1)[..., 0]


def misaligned(weight: Tensor) -> Tensor:
    memory = bytearray(weight.nbytes + 8)
    return torch.frombuffer(memory, dtype=weight.dtype, offset=1, count=weight.numel()).view_as(weight).copy_(weight)


@pytest.mark.parametrize("moved", [strided, misaligned])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (None, "lm_head.weight"),
        (None, "model.norm.weight"),
        (None, "model.layers.0.mlp.down_proj.weight"),
        ("int8", "lm_head.weight"),
        ("int8", "model.layers.0.mlp.up_proj.weight"),
        ("int8", "model.layers.0.mlp.up_proj.scale"),
        ("int4", "model.layers.0.self_attn.q_proj.packed"),
        ("int4", "model.layers.0.self_attn.q_proj.scale_and_zero"),
    ],
)
def test_weights_in_any_memory_are_decoded(
    tiny_model: Make, moved: Callable[[Tensor], Tensor], kind: str | None, name: str
) -> None:
    """The kernels read in place, and refused strided or unaligned weights."""
    model = tiny_model(hidden_size=64, num_attention_heads=8, intermediate_size=96)
    if kind is not None:
        quantize.quantize(model, kind)
    decoder = CpuDecoder(model)
    expected = decoder([[5, 6]], KVCache(model.config, 1, 4)).clone()
    model.load_state_dict({name: moved(model.state_dict()[name])}, strict=False, assign=True)
    torch.testing.assert_close(model(torch.tensor([[5, 6]])).logits[:, -1], expected)
    decoder.refresh()
    assert torch.equal(decoder([[5, 6]], KVCache(model.config, 1, 4)), expected)


def test_the_weight_layout_keeps_the_parameters(tiny_model: Make) -> None:
    model, twin = (uneven(tiny_model(tie_word_embeddings=True, attention_bias=True)) for _ in range(2))
    before = list(model.parameters())
    lay_out_weights(model)
    assert all(old is new for old, new in zip(before, model.parameters(), strict=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name, weight in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    assert len({weight.untyped_storage().data_ptr() for weight in matrices}) == 1
    attention = model.model.layers[1].self_attn
    joined = adjacent([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert joined is not None and torch.equal(joined[:48], attention.q_proj.weight)


def test_neighbours_with_storage_of_their_own_are_not_adjacent() -> None:
    whole = torch.zeros(8, 4)
    assert adjacent([whole[:3], whole[3:5].bfloat16()]) is None
    assert adjacent([whole[:3], whole[4:6]]) is None
    assert adjacent([whole[:, :2], whole[:, 2:]]) is None


@pytest.mark.parametrize("biased", [False, True])
def test_a_changed_model_is_noticed(tiny_model: Make, biased: bool) -> None:
    model = uneven(tiny_model(eos_token_id=None, attention_bias=biased, mlp_bias=biased))
    options = GenerationOptions(max_new_tokens=6, temperature=0.0)
    engine = Engine(model, 1)

    def run() -> list[int]:
        (sequence,) = engine.prefill([[5, 6, 7]], [options])
        finish(engine)
        return sequence.new_ids

    def naive() -> list[int]:
        ids = [5, 6, 7]
        for _ in range(6):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[3:]

    assert run() == naive()
    model.model.layers[0].mlp.up_proj.weight.neg_()  # in place
    engine.cache.lengths[0] = 0
    engine._prefix_cache[0] = []
    assert run() == naive()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.data.mul_(-5)  # in a way that leaves no trace
    engine._prefix_cache[0] = []
    assert run() == naive()
    for layer in model.model.layers:  # replaced
        layer.self_attn.v_proj.weight = torch.nn.Parameter(-3 * layer.self_attn.v_proj.weight)
    engine._prefix_cache[0] = []
    assert run() == naive()


@pytest.mark.parametrize("form", ["full", "int8"])
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_dtype_plays_no_role(tiny_model: Make, default: torch.dtype, form: str) -> None:
    model, ids = uneven(tiny_model(eos_token_id=None)), torch.tensor([[5, 6, 7]])
    searches: list[dict[str, Any]] = [{"temperature": 0.0, "cache": form}, {"num_beams": 3}]
    expected = [model.generate(ids, max_new_tokens=9, **options) for options in searches]
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = [model.generate(ids, max_new_tokens=9, **options) for options in searches]
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_the_default_device_plays_no_role(tiny_model: Make) -> None:
    model = tiny_model()
    with torch.device("meta"):
        logits = CpuDecoder(model)([[5, 6], [7, 8]], KVCache(model.config, 2, 4, device="cpu"))
    assert torch.equal(logits, CpuDecoder(model)([[5, 6], [7, 8]], KVCache(model.config, 2, 4)))


def test_unsupported_models_run_by_their_modules(tiny_model: Make) -> None:
    assert not can_decode(tiny_model(position_encoding="none"))
    assert not can_decode(tiny_model(pretraining_tp=2, vocab_size=98))
    assert not can_decode(tiny_model().double())
    assert not can_decode(lora.add(tiny_model(), rank=2))
    listened_to, eager = tiny_model(), tiny_model()
    listened_to.model.layers[0].register_forward_hook(lambda *_: None)
    eager.set_attn_implementation("eager")
    assert not can_decode(listened_to) and not can_decode(eager)
    other_eps = tiny_model()
    other_eps.model.layers[1].input_layernorm.eps = 0.5
    assert not can_decode(other_eps)


def test_layers_replaced_by_others_are_left_to_the_model(tiny_model: Make) -> None:
    class Doubled(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.__dict__.update(inner.__dict__)
            self.inner = inner

        def forward(self, *arguments: Any) -> torch.Tensor:
            return 2 * self.inner(*arguments)

    for path in ("model.norm", "model.embed_tokens", "model.layers.1.input_layernorm", "model.layers.2.mlp"):
        model = tiny_model()
        model.set_submodule(path, Doubled(model.get_submodule(path)))
        assert not can_decode(model), path
    patched, subclassed, shared, tied, half_biased, branch = (tiny_model(num_key_value_heads=6) for _ in range(6))
    branch.model.layers[2].__class__ = type("Other", (DecoderLayer,), {"mlp_branch": DecoderLayer.feed_forward})
    attention = patched.model.layers[0].self_attn
    attention.forward = lambda *arguments: Doubled.forward(Doubled(attention), *arguments)
    subclassed.model.layers[1].mlp.__class__ = type("Other", (type(subclassed.model.layers[1].mlp),), {})
    shared.model.layers[0].self_attn.v_proj.weight = shared.model.layers[0].self_attn.k_proj.weight
    tied.model.layers[2].mlp = tied.model.layers[0].mlp
    half_biased.model.layers[0].self_attn.q_proj.bias = torch.nn.Parameter(torch.ones(48))
    for model in (patched, subclassed, shared, tied, half_biased, branch):
        assert not can_decode(model)
    assert shared.generate(torch.tensor([[5, 6]]), max_new_tokens=3, eos_id=()).shape == (1, 5)


def test_some_slots_of_a_cache_are_written_where_they_are(tiny_model: Make, ids: torch.Tensor) -> None:
    model = tiny_model()
    whole = KVCache(model.config, 5, 24)
    cache = whole.rows(1, 5).rows(1, 3)
    model(ids[:2, :9], past_key_values=cache)
    found = CpuDecoder(model)(ids[:2, 9:10].tolist(), cache)
    torch.testing.assert_close(found, model(ids[:2, :10]).logits[:, -1], rtol=1e-4, atol=1e-5)
    assert whole.store[:, :, [0, 1, 4]].count_nonzero() == 0
    assert bool((whole.store[:, :, 2:4, :, :10] != 0).all())


def test_refusals(tiny_model: Make) -> None:
    model = tiny_model()
    decoder, cache = CpuDecoder(model), KVCache(model.config, 1, 2)
    with pytest.raises(ValueError, match=r"the cache is of torch\.float16; expected torch\.float32"):
        decoder([[5]], KVCache(model.config, 1, 4, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"\[1, 2\] new ids, but a QuantizedCache takes equally many for each slot"):
        decoder([[5], [6, 7]], QuantizedCache(model.config, 2, 4))
    with pytest.raises(ValueError, match="input id 97 is outside the vocabulary of 97"):
        decoder([[97]], cache)
    with pytest.raises(ValueError, match=r"\[1, 1\] new ids for 1 slots"):
        decoder([[1], [2]], cache)
    with pytest.raises(ValueError, match="3 more exceed the cache's 2"):
        decoder([[1, 2, 3]], cache)


def test_a_model_with_the_weight_layout_is_saved_copied_and_trained_as_before(tiny_model: Make, tmp_path: Path) -> None:
    model, twin = (uneven(tiny_model(tie_word_embeddings=True)) for _ in range(2))
    lay_out_weights(model)
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for copied in (LlamaForCausalLM.from_pretrained(tmp_path, device="cpu"), copy.deepcopy(model)):
        assert all(torch.equal(weight, twin.state_dict()[name]) for name, weight in copied.state_dict().items())
    ids = torch.tensor([[5, 6, 7, 8]])
    for either in (model, twin):
        optimizer = torch.optim.SGD(either.parameters(), lr=0.1)
        with torch.enable_grad():
            either(ids, labels=ids).loss.backward()
        optimizer.step()
    for name, weight in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    assert sum(weight.numel() for weight in model.parameters()) * 4 <= (tmp_path / "weights.pt").stat().st_size


def test_every_tier_of_this_cpu_has_row_limits() -> None:
    assert set(simd_tiers()) <= NATIVE_ROWS.keys()
