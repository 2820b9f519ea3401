"""Adapters that are refused, by the field or tensor that is the reason; the model stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bpe_llama.model import LlamaForCausalLM, lora, quantize
from tests.parity.lora.written import OF_THE_MODEL, Q_V, bases, saved_by_peft

# peft uses a deprecated name of transformers, and warns of intended behaviour.
pytestmark = pytest.mark.filterwarnings("ignore")

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'; expected 'LORA'"),
    ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq': its base"),
    ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda': its base"),
    ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga': its base"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4': its base"),
    ({"init_lora_weights": "new"}, "init_lora_weights is 'new'; expected true"),
    ({"alora_invocation_tokens": [1, 2]}, r"alora_invocation_tokens is \[1, 2\], which is not supported"),
    ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters is"),
    ({"megatron_config": {"a": 1}}, "megatron_config is"),
    ({"use_qalora": True}, r"adapter_config\.json: use_qalora is True, which is not supported"),
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
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    ours, fresh = bases(tmp_path)
    saved_by_peft(fresh(), tmp_path, target_modules=Q_V)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    _refused(ours, tmp_path, message)


def _refused(ours: LlamaForCausalLM, folder: Path, message: str) -> None:
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
    "missing B": (lambda t: {k: v for k, v in t.items() if k != KEY.replace("_A", "_B")}, "not its lora_B"),
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
def test_bad_tensors_are_named_and_the_model_unchanged(kind: str, tmp_path: Path) -> None:
    ours, fresh = bases(tmp_path)
    saved_by_peft(fresh(), tmp_path, target_modules=Q_V)
    change, message = BAD_TENSORS[kind]
    save_file(change(load_file(tmp_path / "adapter_model.safetensors")), tmp_path / "adapter_model.safetensors")
    _refused(ours, tmp_path, message)


@torch.no_grad()
def test_bases_that_cannot_be_computed_are_refused(tmp_path: Path) -> None:
    ours, fresh = bases(tmp_path, tied=True)
    saved_by_peft(fresh(), tmp_path / "pissa", target_modules=["lm_head"], init_lora_weights="pissa")
    file = tmp_path / "pissa" / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "base_layer" not in name}, file)
    _refused(ours, tmp_path / "pissa", "'pissa', which changes the base of lm_head; expected it not tied")
    saved_by_peft(fresh(), tmp_path / "tying", target_modules=["embed_tokens"], ensure_weight_tying=True)
    _refused(ours, tmp_path / "tying", "ensure_weight_tying is true, and model.embed_tokens is tied")
    saved_by_peft(fresh(), tmp_path / "olora", target_modules=["q_proj"], init_lora_weights="olora")
    quantize.quantize(ours, "int8")
    _refused(ours, tmp_path / "olora", "'olora', whose base is computed from whole weights, but .* Int8Linear")
    saved_by_peft(fresh(), tmp_path / "mlp", target_modules=["q_proj"], modules_to_save=["mlp"])
    _refused(ours, tmp_path / "mlp", "modules_to_save names .*mlp, whose weights are quantized")
