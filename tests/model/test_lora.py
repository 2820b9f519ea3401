"""Adapters: training, merging, several at once, quantized bases, refusals."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from bpe_llama.model import KVCache, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, lora, quantize
from bpe_llama.model.backends.cuda.graph import CudaGraphDecoder
from bpe_llama.model.cli.speed import bytes_per_token
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.quantization.layers import Int8Linear
from bpe_llama.model.sampling.params import GenerationOptions
from tests.model.generation.naive import finish
from tests.small_models import TINY

Make = Callable[..., LlamaForCausalLM]


@torch.enable_grad()
def train(model: LlamaForCausalLM, ids: Tensor, steps: int = 20) -> list[float]:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_only_the_adapter_is_trained(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    bare = model(ids).logits
    lora.add(model, rank=4, target_modules=("q_proj", "v_proj", "down_proj"))
    assert torch.equal(model(ids).logits, bare)
    losses = train(model, ids)
    assert losses[-1] < losses[0] - 0.5
    lora.activate(model)
    assert torch.equal(model(ids).logits, bare)
    lora.remove(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_default_targets_fit_fused_layers(tiny_model: Make) -> None:
    """Queries and values by default, as in peft; the fused matrix where there is one."""
    fused = LlamaForCausalLM(
        LlamaConfig.from_dict({"model_type": "phi3"} | TINY | {"eos_token_id": 1, "pad_token_id": 0})
    )
    for model, names in ((tiny_model(), ["q_proj", "v_proj"]), (fused, ["qkv_proj"])):
        lora.add(model, rank=2)
        layers = dict(lora.adapted_layers(model))
        assert sorted({path.split(".")[-1] for path in layers}) == names
        lora.remove(model)
    layers = dict(lora.adapted_layers(lora.add(fused, rank=2, target_modules="all-linear")))
    assert {path.split(".")[-1] for path in layers} == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_keeps_the_output_and_unmerge_restores_the_weights(
    tiny_model: Make, ids: Tensor, dtype: torch.dtype
) -> None:
    model = lora.add(tiny_model().to(dtype), rank=2)
    before = model.model.layers[0].self_attn.q_proj.base_layer.weight.clone()
    train(model, ids, 5)
    adapted = model(ids).logits
    assert lora.merge(model) is model
    if dtype == torch.float32:
        assert_close(model(ids).logits, adapted, atol=2e-5, rtol=1e-4)
    assert not torch.equal(model.model.layers[0].self_attn.q_proj.base_layer.weight, before)
    with pytest.raises(ValueError, match="unmerge them first"):
        lora.activate(model)
    assert lora.unmerge(model) is model
    assert torch.equal(model.model.layers[0].self_attn.q_proj.base_layer.weight, before)
    assert torch.equal(model(ids).logits, adapted)


def test_a_merged_model_without_adapters_can_be_saved(tiny_model: Make, ids: Tensor, tmp_path: Path) -> None:
    model = lora.add(tiny_model(), rank=2)
    train(model, ids, 5)
    with pytest.raises(ValueError, match="not a plain checkpoint"):
        model.save_pretrained(tmp_path / "no")
    assert not (tmp_path / "no").exists()
    lora.merge(model)
    lora.remove(model).save_pretrained(tmp_path)
    assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_several_adapters(tiny_model: Make, ids: Tensor, tmp_path: Path) -> None:
    model = lora.add(tiny_model(), rank=2, name="first", seed=1)
    train(model, ids, 5)
    first = model(ids).logits
    lora.add(model, rank=3, name="second", target_modules=("k_proj", "v_proj"), seed=2)
    assert [name for name, weight in model.named_parameters() if weight.requires_grad and ".first." in name] == []
    train(model, ids.flip(1), 5)
    second = model(ids).logits
    lora.activate(model, "first")
    assert torch.equal(model(ids).logits, first)
    lora.activate(model, "first", "second")
    both = model(ids).logits
    assert not torch.equal(both, first) and not torch.equal(both, second)
    lora.save(model, tmp_path, "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert all("lora_" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    assert torch.equal(lora.load(tiny_model(), tmp_path)(ids).logits, second)


def test_adapters_train_over_quantized_weights(tiny_model: Make, ids: Tensor) -> None:
    model = quantize.quantize(tiny_model(hidden_size=64, num_attention_heads=4, intermediate_size=64), "int4")
    losses = train(lora.add(model, rank=4, target_modules=("q_proj", "down_proj")), ids)
    assert losses[-1] < losses[0] - 0.3
    with pytest.raises(ValueError, match="Int4Linear cannot hold"):
        lora.merge(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and less than 1, got 1\.0"),
        ({"target_modules": ("q_project",)}, "no linear layer is named q_project"),
        ({"name": "a.b"}, "cannot be named 'a.b'"),
    ],
)
def test_bad_requests_are_named(tiny_model: Make, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lora.add(tiny_model(), **options)  # type: ignore[arg-type]


def test_unknown_names_are_refused(tiny_model: Make, tmp_path: Path) -> None:
    model = lora.add(tiny_model())
    with pytest.raises(ValueError, match="named 'default' exists already"):
        lora.add(model)
    with pytest.raises(ValueError, match="no adapter is named other; there are default"):
        lora.activate(model, "other")
    with pytest.raises(ValueError, match="no adapter is named 'other'"):
        lora.save(model, tmp_path, "other")
    with pytest.raises(FileNotFoundError):
        lora.load(model, tmp_path)


def test_a_bad_adapter_is_refused_and_the_model_unchanged(tiny_model: Make, tmp_path: Path) -> None:
    lora.save(lora.add(tiny_model(), rank=2), tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    good_weights, good_config = weights.read_bytes(), json.loads(config.read_text())
    model = tiny_model()

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            lora.load(model, tmp_path)
        assert not any(isinstance(module, lora.LoraLinear) for module in model.modules())

    weights.write_bytes(good_weights[:50])
    refused("damaged")
    weights.write_bytes(good_weights)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for text in ("{}", "[]", "{", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), '{"a":' * 100_000):
        config.write_text(text)
        refused("adapter_config.json: does not describe a LoRA adapter")
    config.write_text(json.dumps(good_config))
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds neither adapter_model\.safetensors nor"):
        lora.load(model, tmp_path)
    pickled = tmp_path / "adapter_model.bin"
    for held, message in (
        ({name: [1]}, "expected a table of named tensors"),
        ([1, 2], "table of named"),
        (Path, "not a file of tensors"),
    ):
        torch.save(held, pickled)
        refused(message)
    pickled.write_bytes(b"junk")
    refused("adapter_model.bin: damaged, or not a file of tensors alone")


def test_a_seed_is_any_integer(tiny_model: Make) -> None:
    expected = lora.add(tiny_model(), rank=2, seed=3).state_dict()
    for seed in (np.int64(3), torch.tensor(3), torch.tensor([3])):
        found = lora.add(tiny_model(), rank=2, seed=seed).state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_restore(tiny_model: Make, ids: Tensor, tmp_path: Path) -> None:
    model = lora.add(tiny_model(), rank=2)
    assert lora.names(model) == ["default"] and lora.names(tiny_model()) == []
    train(model, ids, steps=3)
    lora.save(model, tmp_path, base="somewhere/base")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "somewhere/base"
    again = lora.add(tiny_model(), rank=2, seed=1)
    lora.restore(again, tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)
    for other, message in (
        ({"rank": 3}, "another rank"),
        ({"rank": 2, "target_modules": ["q_proj"]}, "other layers"),
        ({"rank": 2, "alpha": 3.0}, "scale"),
        ({"rank": 2, "init_lora_weights": "olora"}, "init_lora_weights is True; expected 'olora'"),
    ):
        unlike = lora.add(tiny_model(), **other)
        before = {name: weight.clone() for name, weight in unlike.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            lora.restore(unlike, tmp_path)
        assert all(torch.equal(weight, before[name]) for name, weight in unlike.state_dict().items())
    with pytest.raises(ValueError, match="no adapter is named 'default'"):
        lora.restore(tiny_model(), tmp_path)
    lora.save(lora.add(tiny_model(), trainable_token_indices=[3, 4]), tmp_path / "rows")
    with pytest.raises(
        ValueError, match=r"trainable_token_indices are \(3, 4\) of model.embed_tokens; expected \(3, 5\)"
    ):
        lora.restore(lora.add(tiny_model(), trainable_token_indices=[3, 5]), tmp_path / "rows")


def test_a_tied_head_is_adapted_but_not_merged(tiny_model: Make, ids: Tensor) -> None:
    model = lora.add(tiny_model(tie_word_embeddings=True), rank=2, target_modules=("q_proj", "lm_head"))
    train(model, ids, 5)
    adapted, embedding = model(ids).logits, model.model.embed_tokens.weight.clone()
    assert lora.shared_layers(model) == ["lm_head"]
    with pytest.raises(ValueError, match="the weight of lm_head is shared with a module"):
        lora.merge(model)
    assert torch.equal(model(ids).logits, adapted)
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    assert lora.shared_layers(lora.add(tiny_model(), target_modules=("lm_head",))) == []


def test_merged_layers_are_not_quantized(tiny_model: Make, ids: Tensor) -> None:
    """Before, the adapters could be neither unmerged nor activated afterwards."""
    model = lora.add(tiny_model(), rank=2, init_lora_weights=False)
    adapted = model(ids).logits
    lora.merge(model)
    with pytest.raises(
        ValueError, match=r"adapters are merged into model\.layers\.0\.self_attn\.q_proj; expected them"
    ):
        quantize.quantize(model, "int8")
    assert_close(lora.unmerge(model)(ids).logits, adapted)
    quantize.quantize(lora.remove(lora.merge(model)), "int8")


def test_a_classifier_keeps_the_adapters_of_its_decoder(tiny_model: Make, ids: Tensor, tmp_path: Path) -> None:
    model = lora.add(tiny_model(), rank=2, init_lora_weights=False)
    judge = LlamaForSequenceClassification.from_causal_lm(model, ["no", "yes"])
    lora.activate(judge)
    lora.activate(judge, "default")
    lora.save(judge, tmp_path)
    assert_close(lora.load(tiny_model(), tmp_path)(ids).logits, model(ids).logits)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ("q_proj", "down_proj")},
    "dora": {"target_modules": "all-linear", "use_dora": True, "dropout": 0.3},
    "ends": {"target_modules": ("embed_tokens", "lm_head"), "use_rslora": True},
    "saved": {"modules_to_save": ["embed_tokens", "norm", "layers.1.mlp"], "dropout": 0.3},
    "rows": {"trainable_token_indices": {"embed_tokens": [5, 9], "lm_head": [7]}},
    "pissa": {"init_lora_weights": "pissa"},
    "biases": {"bias": "all", "lora_bias": True},
}


def learned(model: LlamaForCausalLM, kind: str, name: str = "default", seed: int = 0) -> LlamaForCausalLM:
    """Return the model with an adapter whose weights are random, as if trained."""
    lora.add(model, rank=3, name=name, **KINDS[kind])
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.15)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_all_backends_compute_the_adapter(tiny_model: Make, ids: Tensor, kind: str) -> None:
    biases = {"attention_bias": True, "mlp_bias": True}
    model, bare = learned(tiny_model(**biases), kind), tiny_model(**biases)
    merged = copy.deepcopy(model)
    lora.merge(merged)
    lora.remove(merged)
    torch.testing.assert_close(merged(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    prompts = [row[: 5 + 3 * n].tolist() for n, row in enumerate(ids)]
    told = []
    for each in (model, merged, bare):
        ways: list[object] = [
            each.generate(ids, max_new_tokens=8, temperature=0.0, **options).tolist()
            for options in ({}, {"cuda_graph": True}, {"num_beams": 3}, {"num_return_sequences": 2})
        ]
        engine = Engine(each, slots=3, prefill_chunk=4)
        options = GenerationOptions(max_new_tokens=6, temperature=0.0)
        sequences = [engine.add_request(prompt, options) for prompt in prompts]
        finish(engine)
        told.append([*ways, [sequence.new_ids for sequence in sequences]])
    assert told[0] == told[1] != told[2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_an_adapter_has_the_models_mode(
    tiny_model: Make, ids: Tensor, tmp_path: Path, kind: str, training: bool
) -> None:
    lora.save(learned(tiny_model(), kind), tmp_path)
    model = lora.load(tiny_model().train(training), tmp_path)
    assert {module.training for module in model.modules()} == {training}
    first, second = model(ids).logits, model(ids).logits
    assert torch.equal(first, second) != (training and "dropout" in KINDS[kind])
    with pytest.raises(ValueError, match="exists already"):
        lora.load(model, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_quantizing_does_not_change_an_adapter(tiny_model: Make, ids: Tensor, tmp_path: Path, kind: str) -> None:
    model = quantize.quantize(learned(tiny_model(), kind), "int8")
    layer = model.model.layers[0].self_attn.q_proj
    assert type(getattr(layer, "base_layer", layer)) is Int8Linear
    whole = quantize.dequantize(copy.deepcopy(model))
    assert_close(model(ids).logits, whole(ids).logits, atol=1e-4, rtol=1e-4)
    assert type(getattr(model.lm_head, "base_layer", model.lm_head)) is torch.nn.Linear
    assert bytes_per_token(model) < bytes_per_token(whole)
    lora.save(model, tmp_path)
    if kind not in ("pissa", "saved"):  # their base needs unquantized weights
        again = lora.load(quantize.quantize(tiny_model(), "int8"), tmp_path)
        assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quantized", [None, "int8"])
def test_a_copy_with_an_adapter_shares_the_weights(
    tiny_model: Make, ids: Tensor, tmp_path: Path, tied: bool, quantized: str | None
) -> None:
    lora.save(learned(tiny_model(tie_word_embeddings=tied), "plain"), tmp_path)
    base = tiny_model(tie_word_embeddings=tied)
    if quantized:
        quantize.quantize(base, quantized)
    alone = lora.load(copy.deepcopy(base), tmp_path)
    shared = {tensor.data_ptr() for tensor in (*base.parameters(), *base.buffers())}
    expected = base(ids).logits
    adapted = lora.load(lora.copy_sharing_weights(base), tmp_path)
    own = [name for name, tensor in adapted.state_dict().items() if tensor.data_ptr() not in shared]
    assert own and all(".lora_" in name for name in own)
    prompt, options = ids[0].tolist(), GenerationOptions(max_new_tokens=4, temperature=0.0)
    Engine(base).prefill([prompt], [options])  # moves the weights in memory, for both
    assert torch.equal(adapted(ids).logits, alone(ids).logits)
    assert torch.equal(base(ids).logits, expected) and not torch.allclose(alone(ids).logits, expected)
    shared = {tensor.data_ptr() for tensor in (*base.parameters(), *base.buffers())}
    assert own == [name for name, tensor in adapted.state_dict().items() if tensor.data_ptr() not in shared]


def test_weights_of_active_adapters(tiny_model: Make, ids: Tensor) -> None:
    model = learned(learned(tiny_model(), "plain", "a"), "ends", "b", seed=1)
    lora.activate(model, "a", "b", weights=[0.0, 0.0])
    assert_close(model(ids).logits, tiny_model()(ids).logits, atol=1e-5, rtol=1e-5)
    engine = Engine(model, slots=1)

    def said() -> list[int]:
        prompt = ids[0].tolist()
        engine.prefill([prompt], [GenerationOptions(max_new_tokens=8, temperature=0.0)])
        sequence = engine.running[0]
        finish(engine)
        return sequence.new_ids

    bare = said()
    lora.activate(model, "a", "b", weights=[2.0, -1.0])
    assert said() == model.generate(ids[:1], max_new_tokens=8, temperature=0.0)[0, 20:].tolist() != bare
    for names, weights, message in (
        (("a", "b"), [1.0], "expected a finite number for each of 2"),
        (("a",), [float("nan")], "expected a finite number"),
        (("a", "a"), None, "expected each once"),
    ):
        with pytest.raises(ValueError, match=message):
            lora.activate(model, *names, weights=weights)
    learned(model, "rows", "c", seed=2)
    lora.add(model, rank=1, name="d", modules_to_save=["embed_tokens"])
    with pytest.raises(ValueError, match=r"adapters c and d both replace model\.embed_tokens"):
        lora.activate(model, "c", "d")


def test_cuda_graphs_are_dropped_when_active_adapters_change(tiny_model: Make) -> None:
    model = learned(tiny_model(), "plain")
    decoder = CudaGraphDecoder(model, KVCache(model.config, 1, 16))

    def is_forgotten() -> bool:
        decoder._steps["a step"] = lambda: None
        decoder._refresh()
        return not decoder._steps

    assert not is_forgotten()
    for change in (
        lambda: lora.activate(model, "default", weights=[0.5]),
        lambda: lora.merge(model),
        lambda: lora.unmerge(model),
        lambda: lora.activate(model),
    ):
        change()
        assert is_forgotten() and not is_forgotten()


def test_impossible_sums_are_refused(tiny_model: Make) -> None:
    model = learned(learned(tiny_model(), "plain", "a"), "dora", "b")
    lora.add(model, rank=2, name="c", target_modules="all-linear")
    for arguments, message in (
        ((["a", "b"], [1, 1], "d"), "adapter 'b' has use_dora True"),
        ((["a", "e"], [1, 1], "d"), "no adapter is named 'e'"),
        ((["a", "c"], [1, 1], "a"), "named 'a' exists already"),
        ((["a", "c"], [1], "d"), "expected a finite number for each"),
        ((["a", "c"], [1, 1], "d", "ties"), "combination_type is 'ties'; expected one of svd, linear, cat"),
        ((["a", "c"], [1, 1], "d", "linear"), "the ranks are 3, 2; a 'linear' sum"),
        ((["a", "c"], [1, 1], "d"), "target_modules is a pattern in one adapter and a list in another"),
    ):
        with pytest.raises(ValueError, match=message):
            lora.add_weighted_adapter(model, *arguments)
    assert lora.names(model) == ["a", "b", "c"]


def test_a_refused_new_adapter_leaves_the_model_unchanged(tiny_model: Make) -> None:
    for options, message in (
        ({"use_qalora": True}, "adapter: use_qalora is True, which is not supported"),
        ({"init_lora_weights": "eva"}, "expected true, false, .gaussian."),
        ({"modules_to_save": ["layers"], "target_modules": "lm_head"}, "modules_to_save names model.layers"),
        ({"modules_to_save": ["lm_haed"]}, "modules_to_save names 'lm_haed', no module"),
        ({"trainable_token_indices": [97]}, "trainable_token_indices holds 97; expected 0 to 96"),
        ({"trainable_token_indices": {"norm": [1]}}, "names 'norm', no embedding"),
        ({"name": "keys"}, "cannot be named 'keys'"),
        ({"target_modules": "("}, "target_modules is"),
        ({"target_modules": "lm_head", "init_lora_weights": "pissa"}, "expected it not tied"),
    ):
        model = tiny_model(tie_word_embeddings=True)
        with pytest.raises(ValueError, match=message):
            lora.add(model, **options)  # type: ignore[arg-type]
        assert lora.names(model) == [] and all(weight.requires_grad for weight in model.parameters())


def test_a_folder_of_an_adapter_is_not_a_model(tiny_model: Make, tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    lora.save(lora.add(model, rank=2), tmp_path / "adapter")
    with pytest.raises(ValueError, match="adapter: holds an adapter and no model"):
        LlamaForCausalLM.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"target_modules": "all-linear"}, {"target_modules": "all-linear"}),
        ({"layers_to_transform": [0]}, {"layers_to_transform": [1]}),
        ({"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]}, {"target_modules": ["k_proj"]}),
    ],
    ids=["all-linear", "layers", "excluded"],
)
def test_a_weighted_sum_is_loaded_again(
    tiny_model: Make, ids: Tensor, tmp_path: Path, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """Before, the saved config named other layers than the tensors were of, and was refused."""
    model = tiny_model()
    lora.add(model, rank=2, name="first", init_lora_weights=False, **first)
    lora.add(model, rank=2, name="second", init_lora_weights=False, **second)
    names, weights = iter(["first", "second"]), iter([0.7, -0.3])  # read once
    lora.add_weighted_adapter(model, names, weights, "both", "cat")  # type: ignore[arg-type]
    lora.save(model, tmp_path, "both")
    assert_close(lora.load(tiny_model(), tmp_path)(ids).logits, model(ids).logits)
