"""Adapters against peft: each loads what the other saves, with equal logits, ids and merged weights."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from bpe_llama.model import LlamaForCausalLM, LlamaForSequenceClassification, lora, quantize
from bpe_llama.model.quantization.layers import QuantizedLinear
from tests.parity.lora.written import (
    IDS,
    OF_THE_MODEL,
    Q_V,
    bases,
    greedy,
    peft,
    saved_by_peft,
    shake,
    transformers,
    with_adapter,
)
from tests.small_models import small_model

# peft uses a deprecated name of transformers, and warns of intended behaviour.
pytestmark = pytest.mark.filterwarnings("ignore")

STORED_HEAD = "lm_head.base_layer.weight"
EVERY_KIND: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["v_proj", "up_proj"], "lora_alpha": 7},
    "rslora": {"target_modules": Q_V, "use_rslora": True},
    "dropout": {"target_modules": Q_V, "lora_dropout": 0.3},
    "rank pattern": {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp.*": 5}},
    "alpha pattern": {"target_modules": Q_V, "alpha_pattern": {"layers.0.self_attn.q_proj": 32}, "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "o_proj", "down_proj"], "use_dora": True},
    "dora with biases": {"target_modules": Q_V, "use_dora": True, "biased": True, "lora_dropout": 0.1},
    "lora bias": {"target_modules": Q_V, "lora_bias": True, "biased": True},
    "bias all": {"target_modules": ["q_proj"], "bias": "all", "biased": True},
    "bias lora_only": {"target_modules": ["q_proj", "down_proj"], "bias": "lora_only", "biased": True},
    "embedding and head saved": {"target_modules": Q_V, "modules_to_save": ["embed_tokens", "lm_head"]},
    "norms saved": {"target_modules": Q_V, "modules_to_save": ["norm"]},
    "block saved": {"target_modules": Q_V, "modules_to_save": ["layers.1.mlp"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "tied head": {"target_modules": ["q_proj", "lm_head"], "tied": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "embedding, tied": {"target_modules": ["embed_tokens", "q_proj"], "tied": True},
    "embedding, dora": {"target_modules": ["embed_tokens"], "use_dora": True},
    "tied, embedding and head saved": {
        "target_modules": Q_V,
        "modules_to_save": ["embed_tokens", "lm_head"],
        "tied": True,
    },
    "tokens": {"target_modules": Q_V, "trainable_token_indices": [3, 5, 7, 100]},
    "tokens, tied": {"target_modules": Q_V, "trainable_token_indices": {"embed_tokens": [9, 3, 5]}, "tied": True},
    "tokens of the head": {
        "target_modules": Q_V,
        "trainable_token_indices": {"lm_head": [3, 5], "embed_tokens": [7, 3]},
    },
    "some layers": {"target_modules": Q_V, "layers_to_transform": [1]},
    "one layer by pattern": {"target_modules": Q_V, "layers_to_transform": 0, "layers_pattern": "layers"},
    "excluded": {"target_modules": Q_V, "exclude_modules": ["layers.0.self_attn.q_proj"]},
    "excluded by regex": {"target_modules": "all-linear", "exclude_modules": r".*mlp.*"},
    "regex": {"target_modules": r".*\.layers\.1\..*(q|down)_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "default targets": {},
    "pissa": {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "pissa"},
    "pissa, dora": {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "pissa", "use_dora": True},
    "pissa, rslora": {"target_modules": ["k_proj", "lm_head"], "init_lora_weights": "pissa", "use_rslora": True},
    "pissa, tied": {"target_modules": ["lm_head", "q_proj"], "init_lora_weights": "pissa", "tied": True},
    "olora": {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "olora", "rank_pattern": {"q_proj": 2}},
    "eva": {"target_modules": Q_V, "init_lora_weights": "eva", "rank_pattern": {"v_proj": 6}},
    "gaussian": {"target_modules": Q_V, "init_lora_weights": "gaussian"},
    "orthogonal": {"target_modules": Q_V, "init_lora_weights": "orthogonal"},
    "mica": {"target_modules": Q_V, "init_lora_weights": "mica"},
    "fan_in_fan_out": {"target_modules": Q_V, "fan_in_fan_out": True},
}


@pytest.mark.parametrize("kind", EVERY_KIND)
@torch.no_grad()
def test_loading_what_peft_saves(kind: str, tmp_path: Path) -> None:
    options = dict(EVERY_KIND[kind])
    ours, fresh = bases(tmp_path, biased=options.pop("biased", False), tied=options.pop("tied", False))
    saved_by_peft(fresh(), tmp_path / "adapter", **options)
    theirs = with_adapter(fresh(), tmp_path / "adapter")
    expected, bare = theirs(IDS).logits, ours(IDS).logits
    before = {name: weight.clone() for name, weight in ours.state_dict().items()}
    assert not torch.allclose(expected, bare, atol=1e-2)

    lora.load(ours, tmp_path / "adapter")
    assert not any(module.training for module in ours.modules())
    assert_close(ours(IDS).logits, expected, atol=1e-4, rtol=0)
    assert ours.generate(IDS, max_new_tokens=8, temperature=0.0).tolist() == greedy(theirs, IDS)

    # peft loads what we save, with the same outputs and all tensors.
    lora.save(ours, tmp_path / "again")
    again = with_adapter(fresh(), tmp_path / "again")
    assert_close(again(IDS).logits, expected, atol=1e-4, rtol=0)
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    if kind == "pissa, tied":  # the stored head is also the embedding
        assert torch.equal(second.pop(OF_THE_MODEL + "model.embed_tokens.weight"), first[OF_THE_MODEL + STORED_HEAD])
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    assert all("base_layer.weight" in name for name in first.keys() - second.keys())  # the base's weights
    given, kept = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("adapter", "again"))
    assert {key: value for key, value in given.items() if kept[key] != value and key != "target_modules"} in (
        {},
        {"fan_in_fan_out": True},
    )

    # Merged, too, unless a weight is shared with another module.
    if lora.why_not_merge(ours) is None:
        lora.merge(ours)
        assert_close(ours(IDS).logits, theirs.merge_and_unload()(IDS).logits, atol=1e-4, rtol=0)
        assert_close(ours(IDS).logits, expected, atol=1e-4, rtol=0)
        lora.unmerge(ours)
    else:
        assert "tied" in kind
    lora.remove(ours)
    assert ours.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in ours.state_dict().items())
    assert torch.equal(ours(IDS).logits, bare)


NEW_KINDS = [
    {},
    {"use_rslora": True, "target_modules": ["lm_head", "q_proj"]},
    {"use_dora": True, "target_modules": ["o_proj", "down_proj"]},
    {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
    {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3.5}},
    {"modules_to_save": ["lm_head", "norm"], "bias": "all"},
    {"trainable_token_indices": [4, 9], "lora_bias": True},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora", "use_dora": True},
    {"init_lora_weights": "gaussian", "layers_to_transform": [0], "exclude_modules": ["q_proj"]},
]


@pytest.mark.parametrize("options", NEW_KINDS, ids=str)
@torch.no_grad()
def test_peft_loads_what_we_train(options: dict[str, Any], tmp_path: Path) -> None:
    ours, fresh = bases(tmp_path, biased=True)
    bare = ours(IDS).logits
    lora.add(ours, rank=4, alpha=12, **{"target_modules": ("q_proj", "v_proj"), **options})
    assert_close(ours(IDS).logits, bare, atol=1e-4, rtol=0)  # a new adapter does not change the output
    shake(ours)
    lora.save(ours, tmp_path / "adapter")
    adapted = with_adapter(fresh(), tmp_path / "adapter")
    assert not torch.allclose(ours(IDS).logits, bare, atol=1e-2)
    assert_close(ours(IDS).logits, adapted(IDS).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}], ids=str)
def test_a_training_step_equals_pefts(options: dict[str, Any], tmp_path: Path) -> None:
    ours, fresh = bases(tmp_path)
    with torch.no_grad():
        saved_by_peft(fresh(), tmp_path / "adapter", target_modules=["q_proj", "down_proj"], **options)
    theirs = with_adapter(fresh(), tmp_path / "adapter", is_trainable=True)
    lora.load(ours, tmp_path / "adapter")
    theirs(input_ids=IDS, labels=IDS).loss.backward()
    ours(IDS, labels=IDS).loss.backward()
    layer, of_peft = ours.model.layers[1].mlp.down_proj.adapters["default"], theirs.base_model.model.model.layers[1].mlp
    assert_close(layer.lora_A.grad, of_peft.down_proj.lora_A["default"].weight.grad, atol=1e-4, rtol=1e-3)
    assert_close(layer.lora_B.grad, of_peft.down_proj.lora_B["default"].weight.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["svd", "linear", "cat"])
@torch.no_grad()
def test_weighted_sums_equal_pefts(kind: str, tmp_path: Path) -> None:
    ours, fresh = bases(tmp_path)
    second = ["k_proj", "v_proj", "embed_tokens"]
    for number, (name, targets) in enumerate({"first": Q_V, "second": second}.items()):
        saved_by_peft(fresh(), tmp_path / name, number, lora_alpha=8 + number, target_modules=targets)
        lora.load(ours, tmp_path / name, name)
    theirs = with_adapter(fresh(), tmp_path / "first", adapter_name="first")
    theirs.load_adapter(tmp_path / "second", adapter_name="second")
    theirs.base_model.set_adapter(["first", "second"])
    lora.activate(ours, "first", "second")
    assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0)
    layers = [module for module in theirs.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    for weights in ([0.7, 0.3], [1.5, -0.5]):
        for layer in layers:
            layer.set_scale("first", weights[0]), layer.set_scale("second", weights[1])
        lora.activate(ours, "first", "second", weights=weights)
        assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0)
    for layer in layers:
        layer.set_scale("first", 1), layer.set_scale("second", 1)
    theirs.add_weighted_adapter(["first", "second"], [0.7, -0.3], "both", combination_type=kind)
    theirs.set_adapter("both")
    lora.add_weighted_adapter(ours, ["first", "second"], [0.7, -0.3], "both", combination_type=kind)
    assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0)
    lora.save(ours, tmp_path / "both", "both")
    lora.merge(ours)
    assert_close(ours(IDS).logits, theirs.merge_and_unload()(IDS).logits, atol=1e-4, rtol=0)
    again = with_adapter(fresh(), tmp_path / "both")
    assert_close(again(IDS).logits, ours(IDS).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_merging_two_active_doras(tmp_path: Path) -> None:
    ours, fresh = bases(tmp_path)
    for number, name in enumerate(("a0", "a1")):
        saved_by_peft(fresh(), tmp_path / name, number, target_modules=Q_V, use_dora=number == 1)
        lora.load(ours, tmp_path / name, name)
    theirs = with_adapter(fresh(), tmp_path / "a0", adapter_name="a0")
    theirs.load_adapter(tmp_path / "a1", adapter_name="a1")
    lora.activate(ours, "a0", "a1")
    theirs.base_model.set_adapter(["a0", "a1"])
    assert_close(ours(IDS).logits, theirs.eval()(IDS).logits, atol=1e-4, rtol=0)
    lora.merge(ours)
    assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_classifiers_head_is_saved_with_its_adapter(tmp_path: Path) -> None:
    bases(tmp_path)
    folder = tmp_path / "base"

    def classifier(of: Any = LlamaForSequenceClassification, num_labels: int = 3) -> Any:
        return of.from_pretrained(folder, num_labels=num_labels)

    theirs = transformers.LlamaForSequenceClassification
    chosen = {"target_modules": "all-linear", "task_type": "SEQ_CLS"}
    made = saved_by_peft(classifier(theirs), tmp_path / "adapter", **chosen)
    ours = lora.load(classifier(), tmp_path / "adapter")
    assert_close(ours(IDS).logits, made(input_ids=IDS).logits, atol=1e-4, rtol=0)
    lora.save(ours, tmp_path / "again")
    again = with_adapter(classifier(theirs), tmp_path / "again")
    assert_close(again(input_ids=IDS).logits, ours(IDS).logits, atol=1e-4, rtol=0)
    lora.merge(ours)
    assert_close(ours(IDS).logits, made(input_ids=IDS).logits, atol=1e-4, rtol=0)

    new = classifier()
    shake(lora.add(new, rank=2, target_modules="all-linear"))
    assert new.score.replacements["default"].module.weight.requires_grad  # as in peft
    lora.save(new, tmp_path / "new")
    again = with_adapter(classifier(theirs), tmp_path / "new")
    assert_close(again(input_ids=IDS).logits, new(IDS).logits, atol=1e-4, rtol=0)
    weights = load_file(tmp_path / "new" / "adapter_model.safetensors")
    del weights["base_model.model.score.weight"]
    save_file(weights, tmp_path / "new" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"has no base_model\.model\.score\.weight, of \[3, 64\]"):
        lora.load(classifier(), tmp_path / "new")
    misshapen = r"adapter_model\.safetensors: .*score\.weight is \[3, 64\]; expected \[2, 64\]"
    with pytest.raises(ValueError, match=misshapen):
        lora.load(classifier(num_labels=2), tmp_path / "adapter")
    with pytest.raises(ValueError, match="task_type is 'SEQ_CLS'; expected it beside a LlamaForSequenceClass"):
        lora.load(LlamaForCausalLM.from_pretrained(folder), tmp_path / "adapter")


@torch.no_grad()
def test_a_pickled_adapter_loads(tmp_path: Path) -> None:
    ours, fresh = bases(tmp_path)
    made = saved_by_peft(fresh(), tmp_path / "safe", target_modules=["q_proj"])
    made.save_pretrained(tmp_path / "adapter", safe_serialization=False)
    assert not (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    lora.load(ours, tmp_path / "adapter")
    assert_close(ours(IDS).logits, made(IDS).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=str)
@torch.no_grad()
def test_an_adapter_of_a_bfloat16_model_is_float32(options: dict[str, Any], tmp_path: Path) -> None:
    ours, fresh = bases(tmp_path)
    saved_by_peft(fresh(), tmp_path / "adapter", target_modules=["q_proj", "down_proj"], **options)
    theirs = with_adapter(fresh().to(torch.bfloat16), tmp_path / "adapter")
    lora.load(ours.to(torch.bfloat16), tmp_path / "adapter")
    assert ours.model.layers[0].mlp.down_proj.adapters["default"].lora_A.dtype == torch.float32
    logits, expected = ours(IDS).logits, theirs(IDS).logits
    assert logits.dtype == expected.dtype == torch.bfloat16
    assert_close(logits.float(), expected.float(), atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str)
@torch.no_grad()
def test_an_adapter_of_a_quantized_model(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    ours, fresh = bases(tmp_path)
    saved_by_peft(fresh(), tmp_path / "adapter", target_modules=["q_proj", "o_proj"], **options)
    quantize.quantize(ours, kind)
    plain = fresh()
    for name, module in ours.named_modules():
        if isinstance(module, QuantizedLinear):
            plain.get_submodule(name).weight.copy_(module.dequantized())
    theirs = with_adapter(plain, tmp_path / "adapter")
    lora.load(ours, tmp_path / "adapter")
    assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0)
    assert ours.generate(IDS, max_new_tokens=6, temperature=0.0).tolist()[0][:18] == greedy(theirs, IDS)[0][:18]
    with pytest.raises(ValueError, match="cannot hold an adapter's update"):
        lora.merge(ours)


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_random_fields(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    names = ["q_proj", "o_proj", "up_proj", "down_proj", "lm_head", "embed_tokens", "layers.1.mlp.gate_proj"]
    options: dict[str, Any] = {
        "r": draw.choice([1, 2, 4]),
        "target_modules": draw.choice(
            ["all-linear", r".*layers\.1.*proj", draw.sample(names, 3), draw.sample(names, 2)]
        ),
        "use_rslora": draw.random() < 0.3,
        "use_dora": draw.random() < 0.4,
        "bias": draw.choice(["none", "none", "all", "lora_only"]),
        "rank_pattern": {draw.choice(names): 3} if draw.random() < 0.5 else {},
        "alpha_pattern": {draw.choice(names): 5} if draw.random() < 0.5 else {},
        "modules_to_save": [draw.choice(["norm", "k_proj", "layernorm"])] if draw.random() < 0.4 else None,
        "exclude_modules": draw.choice([None, ["q_proj"], r".*layers\.0.*"]),
        "init_lora_weights": draw.choice([True, False, "gaussian", "pissa", "olora"]),
    }
    if isinstance(options["target_modules"], list) and draw.random() < 0.3:
        options["layers_to_transform"] = [draw.randint(0, 1)]
    ours, fresh = bases(tmp_path, biased=draw.random() < 0.5)
    saved_by_peft(fresh(), tmp_path / "adapter", **options)
    theirs = with_adapter(fresh(), tmp_path / "adapter")
    expected = theirs(IDS).logits
    lora.load(ours, tmp_path / "adapter")
    assert_close(ours(IDS).logits, expected, atol=2e-4, rtol=0)
    assert ours.generate(IDS, max_new_tokens=5, temperature=0.0).tolist() == greedy(theirs, IDS, 5)
    lora.save(ours, tmp_path / "again")
    again = with_adapter(fresh(), tmp_path / "again")
    assert_close(again(IDS).logits, expected, atol=2e-4, rtol=0)
    lora.merge(ours)
    assert_close(ours(IDS).logits, expected, atol=5e-4, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ("q_proj", "w1", "w2", "w3")},
        {"target_modules": ("q_proj", "gate"), "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
@torch.no_grad()
def test_adapters_of_experts(options: dict[str, Any], tmp_path: Path) -> None:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.1}
    ours = small_model(**experts)
    ours.save_pretrained(tmp_path / "base")
    shake(lora.add(ours, rank=4, **options))
    lora.save(ours, tmp_path / "adapter")
    theirs = with_adapter(transformers.MixtralForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0)
    again = lora.load(LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype="float32"), tmp_path / "adapter")
    assert torch.equal(again(IDS).logits, ours(IDS).logits)
    lora.merge(again)
    assert_close(again(IDS).logits, ours(IDS).logits, atol=1e-4, rtol=0)
