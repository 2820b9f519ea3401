"""DeepSeek alone: the bias of the experts' scores, layers after the model's, the cache of latents, its two paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from bpe_llama.model import KVCache, LlamaConfig, LlamaForCausalLM, lora
from bpe_llama.model.backends.layer_parts import has_known_layers
from bpe_llama.model.cache.quantized import QuantizedCache
from bpe_llama.model.families.latent_attention import LatentAttention
from bpe_llama.model.quantization.quantize import quantize
from bpe_llama.model.training.report.throughput import expert_loads, flops_per_token
from tests.parity.model_families.cases import SHAPE
from tests.parity.model_families.cases_deepseek import DEEPSEEK_CASES, V3, groups, shape, yarn
from tests.small_models import perturb_vectors

pytestmark = pytest.mark.usefixtures("quiet_transformers")

IDS = torch.randint(3, 101, (2, 40), generator=torch.Generator().manual_seed(1))
BIAS = "e_score_correction_bias"
SMALL_V3: dict[str, Any] = DEEPSEEK_CASES["deepseek_v3"]["cases"][0]
NAMES = list(DEEPSEEK_CASES)


def small(name: str, number: int = 0, **fields: Any) -> LlamaForCausalLM:
    case = DEEPSEEK_CASES[name]["cases"][number]
    model = LlamaForCausalLM(LlamaConfig.from_dict(SHAPE | case | {"model_type": name} | fields), seed=1).eval()
    perturb_vectors(model)
    return model


def with_biases(folder: Path) -> Any:
    """Write a small DeepSeek V3 whose experts have biases, and return the model of transformers."""
    torch.manual_seed(0)
    theirs = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**(SHAPE | SMALL_V3))).eval()
    with torch.no_grad():
        for name, buffer in theirs.named_buffers():
            if name.endswith(BIAS):
                buffer.normal_(0.0, 0.3)
    theirs.save_pretrained(folder)
    return theirs


def test_biases_choose_experts_and_stay_float32(tmp_path: Path) -> None:
    theirs = with_biases(tmp_path)
    expected = theirs(IDS).logits
    ours = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    assert_close(ours(IDS).logits, expected, atol=1e-4, rtol=0)
    biases = {name: value for name, value in ours.state_dict().items() if name.endswith(BIAS)}
    assert len(biases) == 3 and all(value.count_nonzero() == 8 for value in biases.values())
    for half in (ours.to(torch.bfloat16), LlamaForCausalLM.from_pretrained(tmp_path, dtype="bfloat16", device="cpu")):
        assert half.dtype == torch.bfloat16
        for name, value in biases.items():
            assert half.state_dict()[name].dtype == torch.float32 and torch.equal(half.state_dict()[name], value)
    half.save_pretrained(tmp_path / "half")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in biases.items())
    for weights in biases:
        ours.get_buffer(weights).zero_()
    assert not torch.allclose(ours.float()(IDS).logits, expected, atol=1e-2)


def test_a_new_model_has_biases_of_zero() -> None:
    biases = [value for name, value in small("deepseek_v3").named_buffers() if name.endswith(BIAS)]
    assert len(biases) == 3 and not any(value.any() for value in biases)


def test_layers_after_those_of_the_model_are_left_out(tmp_path: Path) -> None:
    expected = with_biases(tmp_path)(IDS).logits
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    after = {"model.layers.4.enorm.weight": torch.ones(64), "model.layers.4.eh_proj.weight": torch.ones(64, 128)}
    save_file(tensors | after, path, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"layers\.4 \(num_nextn_predict_layers\), for the prediction of further"):
        ours = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    assert_close(ours(IDS).logits, expected, atol=1e-4, rtol=0)
    values = json.loads((tmp_path / "config.json").read_text())
    values.pop("num_mtp_layers", None)
    (tmp_path / "config.json").write_text(json.dumps(values | {"num_nextn_predict_layers": 0}))
    with pytest.raises(ValueError, match=r"unexpected: model\.layers\.4\.e"):
        LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_projected_queries_attend_as_expanded_latents_do(
    name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = small(name, number), []
    outputs = []
    for projects in (True, False):
        monkeypatch.setattr(LatentAttention, "projects_queries", lambda *sizes, to=projects: seen.append(to) or to)
        cache = KVCache(model.config, 2, 64)
        parts = [model(part, past_key_values=cache).logits for part in IDS.split((20, 1, 12, 7), dim=1)]
        outputs.append(torch.cat(parts, dim=1))
    assert seen == [True] * 16 + [False] * 16
    assert_close(outputs[0], outputs[1], atol=1e-4, rtol=0)
    assert_close(outputs[0], model(IDS).logits, atol=1e-4, rtol=0)


def test_queries_are_projected_where_that_is_less_work() -> None:
    published = LlamaConfig.from_dict(
        V3 | shape(64, 64, 64, 1, 16, None) | groups(8, 1, 1, 1.0) | {"model_type": "deepseek_v3"}
    )
    attention = LatentAttention(published, 0)
    assert [attention.projects_queries(length, 4096) for length in (1, 100, 200, 4096)] == [True, True, False, False]
    assert not attention.projects_queries(1, 1)
    quantize(attention, "int8")
    assert not attention.projects_queries(1, 4096)


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_holds_latents(name: str) -> None:
    model = small(name)
    cache, quantized = KVCache(model.config, 2, 64), QuantizedCache(model.config, 2, 64)
    assert cache.store.shape == (2, 4, 2, 2, 64, 8)  # 2 * 2 * 8 = kv_lora_rank 24 + qk_rope_head_dim 8
    exact = [model(part, past_key_values=cache).logits for part in IDS.split(10, dim=1)]
    close = [model(part, past_key_values=quantized).logits for part in IDS.split(10, dim=1)]
    error = (torch.cat(close, dim=1) - torch.cat(exact, dim=1)).abs()
    assert 0 < error.median() < 0.03 * torch.cat(exact, dim=1).abs().mean()  # a token may change to another expert
    published = LlamaConfig.from_dict({"model_type": "deepseek_v3"})
    assert published.cache_shape == (5, 64)


@torch.enable_grad()
def test_gradients_flow_through_the_cache() -> None:
    model = small("deepseek_v3")
    whole = model(IDS).logits.square().mean()
    whole.backward()
    expected = {name: weight.grad for name, weight in model.named_parameters() if "kv_" in name}
    model.zero_grad()
    cache = KVCache(model.config, 2, 64)
    model(IDS, past_key_values=cache).logits.square().mean().backward()
    for name, weight in model.named_parameters():
        if name in expected:
            assert_close(weight.grad, expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_native_decoder_is_not_used(name: str) -> None:
    assert not has_known_layers(small(name))


def test_default_targets_of_adapters_are_queries_and_values() -> None:
    for number, matrix in ((0, "q_b_proj"), (1, "q_proj")):
        model = lora.add(small("deepseek_v3", number))
        adapted = {name.split(".")[4] for name, weight in model.named_parameters() if weight.requires_grad}
        assert adapted == {matrix, "kv_b_proj"}


@pytest.mark.parametrize("name", NAMES)
def test_routers_are_neither_adapted_nor_quantized(name: str) -> None:
    model = quantize(lora.add(small(name), target_modules="all-linear"), "int8")
    assert [type(layer.mlp.gate).__name__.endswith("Router") for layer in model.model.layers[1:]] == [True] * 3
    assert model(IDS).logits.isfinite().all()


def test_loads_are_those_of_the_chosen_experts() -> None:
    model = small("deepseek_v3")
    for layer in model.model.layers[1:]:
        layer.mlp.gate.get_buffer(BIAS).copy_(torch.tensor([9.0, 9.0, 9.0, 0, 0, 0, 0, 0]))
    model(IDS)
    assert expert_loads(model) == pytest.approx((0.0, 8 / 3))
    longer = flops_per_token(model, 101) - flops_per_token(model, 1)
    assert longer == 6 * 4 * 4 * (12 + 8 + 16) * 100  # layers, heads, size of a key and of a value


def test_rope_scaling_as_published(tmp_path: Path) -> None:
    """A file in the spelling of transformers 4, with the scale of scores that mscale_all_dim sets."""
    theirs = with_biases(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(values | {"rope_theta": 10000, "rope_scaling": yarn(1.0)}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ours = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    assert ours.config.query_scale == pytest.approx(1.3689**2, abs=1e-3)
    assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("fresh_compiler")
@torch.enable_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_pass_is_the_same(name: str) -> None:
    model = small(name).train()
    expected = model.loss(IDS, IDS)
    assert_close(torch.compile(model.loss, backend="eager")(IDS, IDS), expected, atol=1e-5, rtol=1e-5)


@torch.enable_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_mixed_precision_pass_is_close(name: str) -> None:
    model = small(name)
    expected = model.loss(IDS, IDS)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.loss(IDS, IDS)
        with torch.no_grad():
            cached = model(IDS, past_key_values=KVCache(model.config, 2, 64)).logits
    found.backward()
    assert_close(found, expected, atol=0, rtol=0.03)
    assert cached.isfinite().all() and all(weight.grad is not None for weight in model.model.layers[0].parameters())
