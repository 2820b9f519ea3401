"""Qwen alone: defaults and keys of its files, the routing loss, experts under adapters and quantization."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor
from torch.testing import assert_close

from bpe_llama.model import LlamaConfig, LlamaForCausalLM, lora
from bpe_llama.model.quantization.layers import QuantizedLinear
from bpe_llama.model.quantization.quantize import quantize
from bpe_llama.model.training.report.throughput import expert_loads, flops_per_token
from tests.parity.model_families.cases import SHAPE
from tests.parity.model_families.cases_qwen import QWEN_CASES, SMALL_EXPERTS, qwen3_moe

pytestmark = pytest.mark.usefixtures("quiet_transformers")

IDS = torch.randint(3, 101, (2, 40), generator=torch.Generator().manual_seed(1))
SPELT_OTHERWISE = ("dtype", "head_dim", "id2label", "label2id", "rope_scaling", "num_labels", "sliding_window")


def written(name: str, folder: Path, **fields: Any) -> Any:
    """Write a folder with transformers, and return its model."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **(SHAPE | fields))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    return model


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of the config; ``...`` removes one."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


@pytest.mark.parametrize("name", QWEN_CASES)
def test_defaults_are_those_of_transformers(name: str) -> None:
    theirs = transformers.AutoConfig.for_model(name)
    ours = LlamaConfig.from_dict({"model_type": name})
    for key, value in ours.to_dict().items():
        if hasattr(theirs, key) and key not in SPELT_OTHERWISE:
            assert value == getattr(theirs, key), key
    assert ours.head_dim == getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
    for key in ("use_sliding_window", "max_window_layers"):
        assert getattr(ours, key, None) == getattr(theirs, key, None)


NO_TYPES: dict[str, Any] = {"layer_types": ...}
WINDOW: dict[str, Any] = {"sliding_window": 5, "use_sliding_window": True}
SHARED = SMALL_EXPERTS | {"shared_expert_intermediate_size": 24}
READ: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "window not in use": ("qwen2", {}, NO_TYPES | {"sliding_window": 5}),
    "window of all layers": ("qwen2", {}, NO_TYPES | WINDOW | {"max_window_layers": 0}),
    "window of upper layers": ("qwen3", {"head_dim": 16}, NO_TYPES | WINDOW | {"max_window_layers": 3}),
    "window of no layer": ("qwen2", {}, NO_TYPES | WINDOW | {"max_window_layers": 9}),
    "no window": ("qwen2", {}, NO_TYPES | WINDOW | {"sliding_window": None, "max_window_layers": 0}),
    "window of every second layer": ("qwen2_moe", SHARED, NO_TYPES | WINDOW),
    "window of one layer": ("qwen2_moe", SHARED, NO_TYPES | WINDOW | {"max_window_layers": 2}),
    "window beside layer types": ("qwen2", {}, WINDOW | {"max_window_layers": 0}),
    "attention_bias, which is not read": ("qwen2", {}, {"attention_bias": False}),
    "a stated theta": ("qwen3", {"head_dim": 16}, {"rope_parameters": None, "rope_theta": 1000000}),
    "no theta": ("qwen3", {"head_dim": 16}, {"rope_parameters": None}),
    "yarn as published": (
        "qwen3",
        {"head_dim": 16},
        {
            "rope_parameters": None,
            "rope_theta": 1000000,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        },
    ),
    "experts as published": ("qwen3_moe", SMALL_EXPERTS, {"num_experts": 6, "max_window_layers": 4}),
    "no layer has experts": (
        "qwen3_moe",
        SMALL_EXPERTS | {"mlp_only_layers": [0, 1, 2, 3, 9], "output_router_logits": False},
        {},
    ),
}


@pytest.mark.parametrize("case", READ)
@pytest.mark.filterwarnings("error:.*:UserWarning:bpe_llama")
def test_keys_are_read_as_in_transformers(case: str, tmp_path: Path) -> None:
    name, fields, changes = READ[case]
    written(name, tmp_path, **fields)
    edit(tmp_path, **changes)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_close(
        LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0
    )


def test_yarn_extends_the_context(tmp_path: Path) -> None:
    written("qwen3", tmp_path, head_dim=16, max_position_embeddings=20)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    edit(tmp_path, rope_parameters=None, rope_theta=1000000, rope_scaling=yarn)
    theirs, options = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval(), {"max_new_tokens": 6}
    expected = theirs.generate(IDS[:1], do_sample=False, eos_token_id=None, pad_token_id=0, **options)
    ours = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    assert IDS.shape[1] + 6 <= ours.config.context_length == 64
    assert torch.equal(ours.generate(IDS[:1], temperature=0.0, eos_id=(), **options), expected)


PASSED_OVER: dict[str, tuple[str, dict[str, Any], str]] = {
    "chunks": (
        "qwen2",
        {"dual_chunk_attention_config": {"chunk_size": 8, "local_size": 4}},
        "dual_chunk_attention_config is .*, but transformers' qwen2 does not read it",
    ),
    "lower layers without a window": (
        "qwen3_moe",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
        "max_window_layers is 2, but transformers' qwen3_moe does not read it: all layers attend to sliding_window",
    ),
}


@pytest.mark.parametrize("case", PASSED_OVER)
def test_keys_that_transformers_does_not_read_warn(case: str, tmp_path: Path) -> None:
    name, changes, message = PASSED_OVER[case]
    written(name, tmp_path, **(SMALL_EXPERTS if name == "qwen3_moe" else {}))
    edit(tmp_path, **changes)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with pytest.warns(UserWarning, match=message):
        ours = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0)


def test_windows_follow_from_changed_fields() -> None:
    config = LlamaConfig.from_dict(SHAPE | {"model_type": "qwen2"})
    windowed = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
    assert config.replace(**windowed).windows == (None, None, None, 8)
    assert config.replace(**windowed).replace(num_hidden_layers=5).windows == (None, None, None, 8, 8)
    stated = config.replace(**windowed, layer_types=["sliding_attention"] + ["full_attention"] * 3)
    assert stated.replace(vocab_size=7, bos_token_id=None).windows == (8, None, None, None)
    with pytest.raises(ValueError, match="expected one type for each of num_hidden_layers"):
        stated.replace(num_hidden_layers=5)


def test_tensors_of_another_family_are_named(tmp_path: Path) -> None:
    written("qwen2", tmp_path)
    edit(tmp_path, model_type="qwen3", head_dim=16)
    with pytest.raises(ValueError, match=r"missing: model\.layers\.0\.self_attn\.q_norm\.weight.*unexpected: .*bias"):
        LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    written("qwen2_moe", tmp_path, **SMALL_EXPERTS, shared_expert_intermediate_size=24)
    edit(tmp_path, model_type="qwen3_moe", shared_expert_intermediate_size=0, qkv_bias=False, num_experts=6)
    with pytest.raises(ValueError, match=r"missing: .*q_norm.*unexpected: .*shared_expert"):
        LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")


# ---- experts


def sparse(name: str, tmp_path: Path, **fields: Any) -> tuple[LlamaForCausalLM, Any]:
    shared = {"shared_expert_intermediate_size": 24} if name == "qwen2_moe" else {}
    theirs = written(name, tmp_path / "base", **(SMALL_EXPERTS | shared | fields))
    return LlamaForCausalLM.from_pretrained(tmp_path / "base", device="cpu"), theirs


def test_files_of_experts_are_spelt_as_published(tmp_path: Path) -> None:
    ours, _ = sparse("qwen3_moe", tmp_path)
    ours.save_pretrained(tmp_path / "ours")
    saved = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert saved["num_experts"] == 6 and "num_local_experts" not in saved
    for kind in ("qwen2_moe", "qwen3_moe"):
        file = ours.config.to_dict() | {"model_type": kind, "shared_expert_intermediate_size": 0, "num_experts": 7}
        assert transformers.AutoConfig.for_model(**file).num_experts == 7


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe"])
def test_the_routing_loss_does_not_count_padding(name: str, tmp_path: Path) -> None:
    ours, theirs = sparse(name, tmp_path, mlp_only_layers=[1])
    mask = torch.ones_like(IDS)
    mask[1, :15] = 0
    labels = IDS.masked_fill(mask == 0, -100)
    labels[1, 15] = -100  # padding predicts it
    for row_mask, row_labels in ((None, IDS), (mask, labels)):
        expected = theirs.train()(IDS, attention_mask=row_mask, labels=row_labels).loss
        assert_close(ours.train().loss(IDS, row_labels, row_mask), expected, atol=1e-5, rtol=0)
        without = theirs(IDS, attention_mask=row_mask, labels=row_labels, output_router_logits=False).loss
        assert expected > without + 0.1
        assert_close(ours.eval().loss(IDS, row_labels, row_mask), without, atol=1e-5, rtol=0)


def shake(model: LlamaForCausalLM) -> None:
    for name, weight in model.named_parameters():
        if "lora" in name:
            weight.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(len(name)))


@pytest.mark.filterwarnings("ignore")  # of peft
@pytest.mark.parametrize("targets", [("q_proj", "gate_proj", "up_proj", "down_proj", "gate"), "all-linear"])
def test_peft_loads_adapters_of_experts(targets: Any, tmp_path: Path) -> None:
    ours, theirs = sparse("qwen3_moe", tmp_path)
    lora.add(ours, rank=4, alpha=8, target_modules=targets)
    shake(ours)
    lora.save(ours, tmp_path / "adapter")
    found = ours(IDS).logits
    assert_close(
        found, peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()(IDS).logits, atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe"])
def test_adapters_reach_every_projection(name: str, tmp_path: Path) -> None:
    """Of layers with experts and with an MLP, which peft cannot adapt in one model."""
    ours, _ = sparse(name, tmp_path, mlp_only_layers=[1])
    bare = ours(IDS).logits
    lora.add(ours, rank=4, alpha=8, target_modules="all-linear")
    adapted = [weight for weight, _ in ours.named_parameters() if "lora_A" in weight]
    for place in ("layers.1.mlp.gate_proj.", "layers.0.mlp.experts.5.up_proj.", "layers.0.mlp.gate."):
        assert any(place in weight for weight in adapted)
    shake(ours)
    found = ours(IDS).logits
    assert not torch.allclose(found, bare, atol=1e-2)
    lora.merge(ours)
    lora.remove(ours)
    ours.save_pretrained(tmp_path / "merged")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert_close(found, theirs(IDS).logits, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe"])
def test_routers_are_not_quantized(name: str, tmp_path: Path) -> None:
    ours, _ = sparse(name, tmp_path)
    exact = ours(IDS).logits
    quantize(ours, "int8")
    whole = {path.rpartition(".")[2] for path, part in ours.named_modules() if type(part) is torch.nn.Linear}
    assert whole == {"lm_head", "gate"} | ({"shared_expert_gate"} if name == "qwen2_moe" else set())
    assert any(isinstance(part, QuantizedLinear) for part in ours.model.layers[0].mlp.experts.modules())
    assert (ours(IDS).logits - exact).abs().mean() < 0.2 * exact.abs().mean()


def test_the_active_parameters_of_a_published_model() -> None:
    """Qwen3-30B-A3B is published with 3.3 billion active parameters, the embedding included."""
    fields = qwen3_moe(2048, 6144, 2, 32, 4, 768)  # 2 of its 48 layers
    model = LlamaForCausalLM(LlamaConfig.from_dict(fields | {"model_type": "qwen3_moe"}), device="meta")
    embedding = 151_936 * 2048
    active = 24 * (flops_per_token(model, 0) / 6 - embedding) + 2 * embedding
    assert active == pytest.approx(3.35e9, rel=0.01)


def test_the_loads_of_experts(tmp_path: Path) -> None:
    ours, _ = sparse("qwen3_moe", tmp_path, mlp_only_layers=[1])
    ours(IDS)
    low, high = expert_loads(ours) or (0.0, 0.0)
    assert 0 <= low <= 1 <= high


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe"])
@torch.enable_grad()
def test_experts_compile_without_a_graph_break(name: str, tmp_path: Path) -> None:
    ours, _ = sparse(name, tmp_path, num_hidden_layers=1)
    losses: list[Tensor] = []
    for model in (ours.train(), torch.compile(ours, fullgraph=True, backend="aot_eager")):
        ours.zero_grad()
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        losses += [loss.detach(), *(weight.grad.clone() for weight in ours.parameters() if weight.grad is not None)]
    half = len(losses) // 2
    for first, second in zip(losses[:half], losses[half:], strict=True):
        assert_close(first, second, atol=2e-5, rtol=1e-4)
