"""Adapters against peft: each loads what the other saves, with equal logits, ids and merged weights."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from bpe_llama.model import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, lora, quantize
from tests.small_models import SMALL

transformers = pytest.importorskip("transformers", reason="parity with peft needs transformers installed")
peft = pytest.importorskip("peft", reason="parity with peft needs peft installed")
# peft uses a deprecated name of transformers, and warns of intended behaviour.
pytestmark = pytest.mark.filterwarnings("ignore")

OF_THE_MODEL, STORED_HEAD = "base_model.model.", "lm_head.base_layer.weight"
Q_V = ["q_proj", "v_proj"]
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


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 101, (2, 12), generator=torch.Generator().manual_seed(1))


Pair = tuple[LlamaForCausalLM, Callable[[], Any]]


@pytest.fixture
def bases(tmp_path: Path) -> Callable[..., Pair]:
    """Return a function that builds our base model and a function that loads it with transformers."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()

    def made(biased: bool = False, tied: bool = False) -> Pair:
        fields = {"attention_bias": biased, "mlp_bias": biased, "tie_word_embeddings": tied, "pad_token_id": 0}
        config = LlamaConfig(**(SMALL | fields | {"initializer_range": 0.1, "eos_token_id": None}))
        ours = LlamaForCausalLM(config, seed=1).eval()
        shake(ours, keep=1.0, only="bias")
        ours.save_pretrained(tmp_path / "base")
        return ours, lambda: transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base").eval()

    return made


@torch.no_grad()
def shake(model: torch.nn.Module, seed: int = 0, keep: float = 1.0, only: str = "") -> None:
    """Add noise to all trained weights, as if trained."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.requires_grad and name.endswith(only):
            weight.copy_(weight * keep + torch.randn(weight.shape, generator=generator) * 0.1)


def saved_by_peft(theirs: Any, folder: Path, **options: Any) -> None:
    made = peft.get_peft_model(
        theirs, peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **options})
    )
    shake(made)
    made.save_pretrained(folder)


def greedy(theirs: Any, ids: Tensor, count: int = 8) -> list[list[int]]:
    made = theirs.generate(input_ids=ids, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return [list(map(int, row)) for row in made]


@pytest.mark.parametrize("kind", EVERY_KIND)
@torch.no_grad()
def test_loading_what_peft_saves(kind: str, bases: Callable[..., Pair], ids: Tensor, tmp_path: Path) -> None:
    options = dict(EVERY_KIND[kind])
    ours, fresh = bases(biased=options.pop("biased", False), tied=options.pop("tied", False))
    saved_by_peft(fresh(), tmp_path / "adapter", **options)
    theirs = peft.PeftModel.from_pretrained(fresh(), tmp_path / "adapter").eval()
    expected, bare = theirs(ids).logits, ours(ids).logits
    before = {name: weight.clone() for name, weight in ours.state_dict().items()}
    assert not torch.allclose(expected, bare, atol=1e-2)

    lora.load(ours, tmp_path / "adapter")
    assert not any(module.training for module in ours.modules())
    assert_close(ours(ids).logits, expected, atol=1e-4, rtol=0)
    assert ours.generate(ids, max_new_tokens=8, temperature=0.0).tolist() == greedy(theirs, ids)

    # peft loads what we save, with the same outputs and all tensors.
    lora.save(ours, tmp_path / "again")
    again = peft.PeftModel.from_pretrained(fresh(), tmp_path / "again").eval()
    assert_close(again(ids).logits, expected, atol=1e-4, rtol=0)
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
        assert_close(ours(ids).logits, theirs.merge_and_unload()(ids).logits, atol=1e-4, rtol=0)
        assert_close(ours(ids).logits, expected, atol=1e-4, rtol=0)
        lora.unmerge(ours)
    else:
        assert "tied" in kind
    lora.remove(ours)
    assert ours.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in ours.state_dict().items())
    assert torch.equal(ours(ids).logits, bare)


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
def test_peft_loads_what_we_train(
    options: dict[str, Any], bases: Callable[..., Pair], ids: Tensor, tmp_path: Path
) -> None:
    ours, fresh = bases(biased=True)
    bare = ours(ids).logits
    lora.add(ours, rank=4, alpha=12, **{"target_modules": ("q_proj", "v_proj"), **options})
    assert_close(ours(ids).logits, bare, atol=1e-4, rtol=0)  # a new adapter does not change the output
    shake(ours)
    lora.save(ours, tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(fresh(), tmp_path / "adapter").eval()
    assert not torch.allclose(ours(ids).logits, bare, atol=1e-2)
    assert_close(ours(ids).logits, adapted(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}], ids=str)
def test_a_training_step_equals_pefts(
    options: dict[str, Any], bases: Callable[..., Pair], ids: Tensor, tmp_path: Path
) -> None:
    ours, fresh = bases()
    with torch.no_grad():
        saved_by_peft(fresh(), tmp_path / "adapter", target_modules=["q_proj", "down_proj"], **options)
    theirs = peft.PeftModel.from_pretrained(fresh(), tmp_path / "adapter", is_trainable=True)
    lora.load(ours, tmp_path / "adapter")
    theirs(input_ids=ids, labels=ids).loss.backward()
    ours(ids, labels=ids).loss.backward()
    layer, of_peft = ours.model.layers[1].mlp.down_proj.adapters["default"], theirs.base_model.model.model.layers[1].mlp
    assert_close(layer.lora_A.grad, of_peft.down_proj.lora_A["default"].weight.grad, atol=1e-4, rtol=1e-3)
    assert_close(layer.lora_B.grad, of_peft.down_proj.lora_B["default"].weight.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["svd", "linear", "cat"])
@torch.no_grad()
def test_weighted_sums_equal_pefts(kind: str, bases: Callable[..., Pair], ids: Tensor, tmp_path: Path) -> None:
    ours, fresh = bases()
    second = ["k_proj", "v_proj", "embed_tokens"]
    for number, (name, targets) in enumerate({"first": ["q_proj", "v_proj"], "second": second}.items()):
        made = peft.get_peft_model(fresh(), peft.LoraConfig(r=4, lora_alpha=8 + number, target_modules=targets))
        shake(made, seed=number)
        made.save_pretrained(tmp_path / name)
        lora.load(ours, tmp_path / name, name)
    theirs = peft.PeftModel.from_pretrained(fresh(), tmp_path / "first", adapter_name="first")
    theirs.load_adapter(tmp_path / "second", adapter_name="second")
    theirs.base_model.set_adapter(["first", "second"])
    lora.activate(ours, "first", "second")
    assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)
    for weights in ([0.7, 0.3], [1.5, -0.5]):
        for name, weight in zip(("first", "second"), weights, strict=True):
            for module in theirs.modules():
                if isinstance(module, peft.tuners.lora.LoraLayer):
                    module.set_scale(name, weight)
        lora.activate(ours, "first", "second", weights=weights)
        assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)
        for module in theirs.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.set_scale("first", 1), module.set_scale("second", 1)
    theirs.add_weighted_adapter(["first", "second"], [0.7, -0.3], "both", combination_type=kind)
    theirs.set_adapter("both")
    lora.add_weighted_adapter(ours, ["first", "second"], [0.7, -0.3], "both", combination_type=kind)
    assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)
    lora.save(ours, tmp_path / "both", "both")
    lora.merge(ours)
    assert_close(ours(ids).logits, theirs.merge_and_unload()(ids).logits, atol=1e-4, rtol=0)
    again = peft.PeftModel.from_pretrained(fresh(), tmp_path / "both").eval()
    assert_close(again(ids).logits, ours(ids).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_merging_two_active_doras(bases: Callable[..., Pair], ids: Tensor, tmp_path: Path) -> None:
    ours, fresh = bases()
    theirs: Any = None
    for number, options in enumerate([{}, {"use_dora": True}]):
        made = peft.get_peft_model(fresh(), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **options))
        shake(made, seed=number)
        made.save_pretrained(tmp_path / str(number))
        lora.load(ours, tmp_path / str(number), f"a{number}")
        if theirs is None:
            theirs = peft.PeftModel.from_pretrained(fresh(), tmp_path / "0", adapter_name="a0")
        else:
            theirs.load_adapter(tmp_path / "1", adapter_name="a1")
    lora.activate(ours, "a0", "a1")
    theirs.base_model.set_adapter(["a0", "a1"])
    assert_close(ours(ids).logits, theirs.eval()(ids).logits, atol=1e-4, rtol=0)
    lora.merge(ours)
    assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_classifiers_head_is_saved_with_its_adapter(bases: Callable[..., Pair], ids: Tensor, tmp_path: Path) -> None:
    bases()
    folder = tmp_path / "base"
    base = transformers.LlamaForSequenceClassification.from_pretrained(folder, num_labels=3)
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS")
    made = peft.get_peft_model(base, config)
    shake(made)
    made.save_pretrained(tmp_path / "adapter")
    ours = LlamaForSequenceClassification.from_pretrained(folder, num_labels=3)
    lora.load(ours, tmp_path / "adapter")
    assert_close(ours(ids).logits, made.eval()(input_ids=ids).logits, atol=1e-4, rtol=0)
    lora.save(ours, tmp_path / "again")
    base = transformers.LlamaForSequenceClassification.from_pretrained(folder, num_labels=3)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "again").eval()
    assert_close(again(input_ids=ids).logits, ours(ids).logits, atol=1e-4, rtol=0)
    lora.merge(ours)
    assert_close(ours(ids).logits, made(input_ids=ids).logits, atol=1e-4, rtol=0)

    new = LlamaForSequenceClassification.from_pretrained(folder, num_labels=3)
    shake(lora.add(new, rank=2, target_modules="all-linear"))
    assert new.score.replacements["default"].module.weight.requires_grad  # as in peft
    lora.save(new, tmp_path / "new")
    base = transformers.LlamaForSequenceClassification.from_pretrained(folder, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "new").eval()
    assert_close(theirs(input_ids=ids).logits, new(ids).logits, atol=1e-4, rtol=0)
    weights = load_file(tmp_path / "new" / "adapter_model.safetensors")
    del weights["base_model.model.score.weight"]
    save_file(weights, tmp_path / "new" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"has no base_model\.model\.score\.weight, of \[3, 64\]"):
        lora.load(LlamaForSequenceClassification.from_pretrained(folder, num_labels=3), tmp_path / "new")
    with pytest.raises(
        ValueError, match=r"adapter_model\.safetensors: .*score\.weight is \[3, 64\]; expected \[2, 64\]"
    ):
        lora.load(LlamaForSequenceClassification.from_pretrained(folder, num_labels=2), tmp_path / "adapter")
    with pytest.raises(ValueError, match="task_type is 'SEQ_CLS'; expected it beside a LlamaForSequenceClass"):
        lora.load(LlamaForCausalLM.from_pretrained(folder), tmp_path / "adapter")


@torch.no_grad()
def test_a_pickled_adapter_loads(bases: Callable[..., Pair], ids: Tensor, tmp_path: Path) -> None:
    ours, fresh = bases()
    made = peft.get_peft_model(fresh(), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    shake(made)
    made.save_pretrained(tmp_path / "adapter", safe_serialization=False)
    assert not (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    lora.load(ours, tmp_path / "adapter")
    assert_close(ours(ids).logits, made.eval()(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=str)
@torch.no_grad()
def test_an_adapter_of_a_bfloat16_model_is_float32(
    options: dict[str, Any], bases: Callable[..., Pair], ids: Tensor, tmp_path: Path
) -> None:
    ours, fresh = bases()
    saved_by_peft(fresh(), tmp_path / "adapter", target_modules=["q_proj", "down_proj"], **options)
    theirs = peft.PeftModel.from_pretrained(fresh().to(torch.bfloat16), tmp_path / "adapter").eval()
    lora.load(ours.to(torch.bfloat16), tmp_path / "adapter")
    assert ours.model.layers[0].mlp.down_proj.adapters["default"].lora_A.dtype == torch.float32
    logits, expected = ours(ids).logits, theirs(ids).logits
    assert logits.dtype == expected.dtype == torch.bfloat16
    assert_close(logits.float(), expected.float(), atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str)
@torch.no_grad()
def test_an_adapter_of_a_quantized_model(
    kind: str, options: dict[str, Any], bases: Callable[..., Pair], ids: Tensor, tmp_path: Path
) -> None:
    ours, fresh = bases()
    saved_by_peft(fresh(), tmp_path / "adapter", target_modules=["q_proj", "o_proj"], **options)
    quantize.quantize(ours, kind, group_size=32)
    plain = fresh()
    for name, module in ours.named_modules():
        if isinstance(module, quantize.QuantizedLinear):
            plain.get_submodule(name).weight.copy_(module.dequantized())
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    lora.load(ours, tmp_path / "adapter")
    assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)
    assert ours.generate(ids, max_new_tokens=6, temperature=0.0).tolist()[0][:18] == greedy(theirs, ids)[0][:18]
    with pytest.raises(ValueError, match="cannot hold an adapter's update"):
        lora.merge(ours)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq': its base"),
    ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda': its base"),
    ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga': its base"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4': its base"),
    ({"init_lora_weights": "new"}, "init_lora_weights is 'new'; expected true"),
    ({"alora_invocation_tokens": [1, 2]}, r"alora_invocation_tokens is \[1, 2\], which is not supported"),
    ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters is"),
    ({"megatron_config": {"a": 1}}, "megatron_config is"),
    ({"use_qalora": True}, "use_qalora is True"),
    ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication is"),
    ({"arrow_config": {"top_k": 3}}, "arrow_config is"),
    ({"use_bdlora": {"nblocks": 2}}, "use_bdlora is"),
    ({"velora_config": {"num_groups": 4}}, "velora_config is"),
    ({"monteclora_config": {"num_samples": 4}}, "monteclora_config is"),
    ({"kasa_config": {"beta": 1}}, "kasa_config is"),
    ({"some_field_to_come": 3}, "some_field_to_come is 3, which is not supported"),
    ({"task_type": "TOKEN_CLS"}, "task_type is 'TOKEN_CLS'; expected 'CAUSAL_LM'"),
    ({"r": 0}, "r is 0; expected an integer of at least 1"),
    ({"r": "4"}, "r is '4'; expected an integer"),
    ({"r": True}, "r is True; expected an integer"),
    ({"r": None}, "r is null"),
    ({"lora_alpha": float("nan")}, "lora_alpha is nan; expected a number"),
    ({"lora_dropout": 1.0}, r"lora_dropout is 1\.0; expected a number in"),
    ({"bias": "some"}, "bias is 'some'; expected 'none', 'all'"),
    ({"target_modules": "("}, r"target_modules is '\('; expected"),
    ({"target_modules": [1]}, r"target_modules is \[1\]; expected"),
    ({"rank_pattern": {"q_proj": 0}}, "rank_pattern is"),
    ({"rank_pattern": ["q_proj"]}, "rank_pattern is"),
    ({"use_dora": "yes"}, "use_dora is 'yes'; expected true or false"),
    ({"trainable_token_indices": [1, 1]}, "trainable_token_indices is"),
    ({"trainable_token_indices": [101]}, "trainable_token_indices holds 101; expected 0 to 100"),
    ({"trainable_token_indices": [5]}, "has no .*embed_tokens.token_adapter.trainable_tokens_delta"),
    ({"modules_to_save": ["lm_head"]}, r"has no .*lm_head\.weight, of \[101, 64\], which modules_to_save"),
    ({"modules_to_save": ["layers"]}, r"modules_to_save names model\.layers"),
    ({"modules_to_save": ["foo"]}, r"adapter_config\.json: modules_to_save names 'foo', no module of the model"),
    ({"use_dora": True}, "lacks base_model.*lora_magnitude_vector"),
    ({"r": 8}, r"is \[64, 4\] by \[4, 64\]; expected \[64, 8\] by \[8, 64\], of rank 8"),
    ({"rank_pattern": {"v_proj": 2}}, r"v_proj is \[64, 4\] by \[4, 64\]; expected \[64, 2\]"),
    ({"target_modules": ["q_proj", "k_proj", "v_proj"]}, r"has no update of model\.layers\.0\.self_attn\.k_proj"),
    ({"target_modules": ["q_proj"]}, r"adapts model\.layers\.0\.self_attn\.v_proj, which target_modules .* not name"),
    ({"layers_to_transform": [0]}, r"adapts model\.layers\.1\.self_attn\..*, which target_modules"),
    ({"layers_pattern": ["layers"]}, "layers_pattern is given without layers_to_transform"),
    ({"lora_bias": True}, r"but not its lora_B: .*lora_B\.bias"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[str(change) for change, _ in REFUSED])
@torch.no_grad()
def test_unsupported_fields_are_refused_and_the_model_unchanged(
    change: dict[str, Any], message: str, bases: Callable[..., Pair], ids: Tensor, tmp_path: Path
) -> None:
    ours, fresh = bases()
    saved_by_peft(fresh(), tmp_path, target_modules=Q_V)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    _refused(ours, tmp_path, message, ids)


def _refused(ours: LlamaForCausalLM, folder: Path, message: str, ids: Tensor) -> None:
    before = {name: (id(module), module.training) for name, module in ours.named_modules()}
    weights = {name: (id(weight), weight.requires_grad) for name, weight in ours.named_parameters()}
    with pytest.raises(ValueError, match=message) as caught:
        lora.load(ours, folder)
    assert str(folder) in str(caught.value)
    assert {name: (id(module), module.training) for name, module in ours.named_modules()} == before
    assert {name: (id(weight), weight.requires_grad) for name, weight in ours.named_parameters()} == weights
    assert lora.names(ours) == []


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
BAD_TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "missing": (lambda t: {k: v for k, v in t.items() if k != KEY}, r"q_proj but lacks .*q_proj\.lora_A\.weight"),
    "missing layer": (lambda t: {k: v for k, v in t.items() if "s.0." not in k}, r"no update of model\.layers\.0"),
    "extra": (lambda t: {**t, OF_THE_MODEL + "lm_head.bias": torch.zeros(3)}, r"lm_head\.bias, which .* does not name"),
    "extra module": (
        lambda t: {**t, OF_THE_MODEL + "x.weight": torch.zeros(3)},
        r"x\.weight, which the model does not",
    ),
    "stray": (lambda t: {**t, "x": torch.zeros(3)}, "other tensors than pairs of lora_A and lora_B: x"),
    "misshapen": (lambda t: {**t, KEY: torch.zeros(4, 63)}, r"by \[4, 63\]; expected \[64, 4\] by \[4, 64\]"),
    "integers": (lambda t: {**t, KEY: torch.zeros(4, 64, dtype=torch.int32)}, r"lora_A\.weight is of torch\.int32"),
    "other model": (lambda t: {k.replace("s.1.", "s.9."): v for k, v in t.items()}, r"layers\.9.*model does not have"),
    "resized": (
        lambda t: {**t, OF_THE_MODEL + "model.embed_tokens.weight": torch.zeros(110, 64)},
        r"embed_tokens\.weight is \[110, 64\]; expected \[101, 64\]",
    ),
    "magnitude": (lambda t: {**t, KEY.replace("A.weight", "magnitude_vector"): torch.ones(64)}, "does not name"),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
@torch.no_grad()
def test_bad_tensors_are_named_and_the_model_unchanged(
    kind: str, bases: Callable[..., Pair], ids: Tensor, tmp_path: Path
) -> None:
    ours, fresh = bases()
    saved_by_peft(fresh(), tmp_path, target_modules=Q_V)
    change, message = BAD_TENSORS[kind]
    save_file(change(load_file(tmp_path / "adapter_model.safetensors")), tmp_path / "adapter_model.safetensors")
    _refused(ours, tmp_path, message, ids)


@torch.no_grad()
def test_bases_that_cannot_be_computed_are_refused(bases: Callable[..., Pair], ids: Tensor, tmp_path: Path) -> None:
    ours, fresh = bases(tied=True)
    saved_by_peft(fresh(), tmp_path / "pissa", target_modules=["lm_head"], init_lora_weights="pissa")
    file = tmp_path / "pissa" / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "base_layer" not in name}, file)
    _refused(ours, tmp_path / "pissa", "'pissa', which changes the base of lm_head; expected it not tied", ids)
    saved_by_peft(fresh(), tmp_path / "tying", target_modules=["embed_tokens"], ensure_weight_tying=True)
    _refused(ours, tmp_path / "tying", "ensure_weight_tying is true, and model.embed_tokens is tied", ids)
    saved_by_peft(fresh(), tmp_path / "olora", target_modules=["q_proj"], init_lora_weights="olora")
    quantize.quantize(ours, "int8")
    _refused(ours, tmp_path / "olora", "'olora', whose base is computed from whole weights, but .* Int8Linear", ids)
    saved_by_peft(fresh(), tmp_path / "mlp", target_modules=["q_proj"], modules_to_save=["mlp"])
    _refused(ours, tmp_path / "mlp", "modules_to_save names .*mlp, whose weights are quantized", ids)


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_random_fields(seed: int, bases: Callable[..., Pair], ids: Tensor, tmp_path: Path) -> None:
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
    ours, fresh = bases(biased=draw.random() < 0.5)
    saved_by_peft(fresh(), tmp_path / "adapter", **options)
    theirs = peft.PeftModel.from_pretrained(fresh(), tmp_path / "adapter").eval()
    expected = theirs(ids).logits
    lora.load(ours, tmp_path / "adapter")
    assert_close(ours(ids).logits, expected, atol=2e-4, rtol=0)
    assert ours.generate(ids, max_new_tokens=5, temperature=0.0).tolist() == greedy(theirs, ids, 5)
    lora.save(ours, tmp_path / "again")
    again = peft.PeftModel.from_pretrained(fresh(), tmp_path / "again").eval()
    assert_close(again(ids).logits, expected, atol=2e-4, rtol=0)
    lora.merge(ours)
    assert_close(ours(ids).logits, expected, atol=5e-4, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ("q_proj", "w1", "w2", "w3")},
        {"target_modules": ("q_proj", "gate"), "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
@torch.no_grad()
def test_adapters_of_experts(options: dict[str, Any], ids: Tensor, tmp_path: Path) -> None:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.1}
    ours = LlamaForCausalLM(LlamaConfig(**(SMALL | experts)), seed=1).eval()
    ours.save_pretrained(tmp_path / "base")
    shake(lora.add(ours, rank=4, **options))
    lora.save(ours, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(
        transformers.MixtralForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    assert_close(ours(ids).logits, theirs.eval()(ids).logits, atol=1e-4, rtol=0)
    again = lora.load(LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype="float32"), tmp_path / "adapter")
    assert torch.equal(again(ids).logits, ours(ids).logits)
    lora.merge(again)
    assert_close(again(ids).logits, ours(ids).logits, atol=1e-4, rtol=0)
