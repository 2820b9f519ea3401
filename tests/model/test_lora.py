"""Adapters: what they train, merge, forget and refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from bpe_llama.model import LlamaForCausalLM, lora, quantize

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


def test_only_the_adapter_learns(tiny_model: Make, ids: Tensor) -> None:
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_changes_no_output_and_unmerging_no_weight(tiny_model: Make, ids: Tensor, dtype: torch.dtype) -> None:
    model = lora.add(tiny_model().to(dtype), rank=2)
    before = model.model.layers[0].self_attn.q_proj.base_layer.weight.clone()
    train(model, ids, 5)
    adapted = model(ids).logits
    lora.merge(model)
    if dtype == torch.float32:
        assert_close(model(ids).logits, adapted, atol=2e-5, rtol=1e-4)
    assert not torch.equal(model.model.layers[0].self_attn.q_proj.base_layer.weight, before)
    with pytest.raises(ValueError, match="unmerge them first"):
        lora.activate(model)
    lora.unmerge(model)
    assert torch.equal(model.model.layers[0].self_attn.q_proj.base_layer.weight, before)
    assert torch.equal(model(ids).logits, adapted)


def test_a_merged_model_is_an_ordinary_one(tiny_model: Make, ids: Tensor, tmp_path: Path) -> None:
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


def test_adapters_learn_over_quantised_weights(tiny_model: Make, ids: Tensor) -> None:
    model = quantize.quantize(tiny_model(hidden_size=64, num_attention_heads=4, intermediate_size=64), "int4")
    losses = train(lora.add(model, rank=4, target_modules=("q_proj", "down_proj")), ids)
    assert losses[-1] < losses[0] - 0.3
    with pytest.raises(ValueError, match="Int4Linear cannot hold"):
        lora.merge(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"dropout": 1.0}, r"dropout 1\.0"),
        ({"target_modules": ("q_project",)}, "no linear layer is named q_project"),
        ({"name": "a.b"}, "cannot be named 'a.b'"),
    ],
)
def test_bad_requests_are_named(tiny_model: Make, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lora.add(tiny_model(), **options)  # type: ignore[arg-type]


def test_unknown_names_are_refused(tiny_model: Make, tmp_path: Path) -> None:
    model = lora.add(tiny_model())
    with pytest.raises(ValueError, match="named 'default' is there already"):
        lora.add(model)
    with pytest.raises(ValueError, match="no adapter is named other; there are default"):
        lora.activate(model, "other")
    with pytest.raises(ValueError, match="no adapter is named 'other'"):
        lora.save(model, tmp_path, "other")
    with pytest.raises(FileNotFoundError):
        lora.load(model, tmp_path)


def test_a_bad_adapter_is_refused_and_nothing_added(tiny_model: Make, tmp_path: Path) -> None:
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
    tensors = load_file(weights)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(tensors | {name: torch.zeros(2, 5)}, weights)
    refused(r"q_proj is \[48, 2\] by \[2, 5\]; expected \[48, 2\] by \[2, 48\]")
    save_file({key: tensor for key, tensor in tensors.items() if key != name.replace("_A", "_B")}, weights)
    refused("not its lora_B")
    save_file(tensors | {"stray": torch.zeros(1)}, weights)
    refused("other tensors than pairs of lora_A and lora_B: stray")
    save_file({key.replace("layers.0", "layers.9"): tensor for key, tensor in tensors.items()}, weights)
    refused(r"layers\.9\.self_attn\.\w_proj, which the model does not have")
    weights.write_bytes(good_weights)
    for change, message in (
        ({"use_dora": True}, "lacks .*q_proj.lora_magnitude_vector"),
        ({"peft_type": "IA3"}, "only plain LoRA is known"),
        ({"use_qalora": True}, "adapter_config.json: use_qalora is True, which is not supported"),
    ):
        config.write_text(json.dumps(good_config | change))
        refused(message)
    config.write_text("{}")
    refused("does not describe a LoRA adapter")


def test_an_adapter_gets_its_own_numbers_back(tiny_model: Make, ids: Tensor, tmp_path: Path) -> None:
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
    ):
        unlike = lora.add(tiny_model(), **other)
        before = {name: weight.clone() for name, weight in unlike.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            lora.restore(unlike, tmp_path)
        assert all(torch.equal(weight, before[name]) for name, weight in unlike.state_dict().items())
    with pytest.raises(ValueError, match="no adapter is named 'default'"):
        lora.restore(tiny_model(), tmp_path)


def test_a_tied_head_is_adapted_but_not_merged(tiny_model: Make, ids: Tensor) -> None:
    model = lora.add(tiny_model(tie_word_embeddings=True), rank=2, target_modules=("q_proj", "lm_head"))
    train(model, ids, 5)
    adapted, embedding = model(ids).logits, model.model.embed_tokens.weight.clone()
    assert lora.shared_layers(model) == ["lm_head"]
    with pytest.raises(ValueError, match="the weight of lm_head is another module's too"):
        lora.merge(model)
    assert torch.equal(model(ids).logits, adapted)
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    assert lora.shared_layers(lora.add(tiny_model(), target_modules=("lm_head",))) == []
