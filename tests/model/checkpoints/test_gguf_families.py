"""GGUF files of DeepSeek and Llama 4: split tensors, older files, and keys that are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpe_llama.model import LlamaConfig, LlamaForCausalLM
from bpe_llama.model.checkpoints.gguf import load_gguf
from bpe_llama.model.checkpoints.gguf_config import config_from_gguf, layout_of
from bpe_llama.model.checkpoints.gguf_tensors import Content
from bpe_llama.model.checkpoints.gguf_write import content_of, save_gguf
from bpe_llama.model.family import FAMILIES
from tests.gguf_files import finish
from tests.small_models import SMALL

gguf = pytest.importorskip("gguf", reason="the gguf package writes the files read here")

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = EXPERTS | {"num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 32}
LATENT |= {"qk_rope_head_dim": 8, "v_head_dim": 16, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
FIELDS: dict[str, dict[str, Any]] = {
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT | {"n_group": 2, "topk_group": 1},
    "llama4_text": EXPERTS
    | {"intermediate_size_mlp": 64, "interleave_moe_layer_step": 2, "head_dim": 16, "num_key_value_heads": 2},
}


def model_of(name: str) -> LlamaForCausalLM:
    config = LlamaConfig.from_dict(SMALL | FIELDS[name] | {"model_type": name})
    model = LlamaForCausalLM(config, seed=1).eval()
    for key, buffer in model.named_buffers():
        if key.endswith("e_score_correction_bias"):
            buffer.copy_(torch.linspace(-0.3, 0.3, 4))
    return model


@pytest.mark.parametrize("name", FIELDS)
def test_split_tensors_are_quantized_and_joined(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    for dtype, worst in (("q8_0", 1e-2), ("bfloat16", 1e-2)):
        save_gguf(model, tmp_path / "m.gguf", dtype=dtype)
        loaded = load_gguf(tmp_path / "m.gguf", device="cpu", dtype="bfloat16")
        found = loaded.state_dict()
        assert found.keys() == model.state_dict().keys()
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(found[key].float(), tensor, atol=worst, rtol=1e-2)
            if key.endswith("bias"):
                assert found[key].dtype == torch.float32 and torch.equal(found[key], tensor)


def test_a_file_of_2024_is_read(tmp_path: Path) -> None:
    # As llama.cpp wrote it before April 2025: the matrix of keys and values is whole, sizes are those of the heads.
    model = model_of("deepseek_v2")
    metadata, tensors = content_of(model)
    changes = {"attention.key_length": 40, "attention.value_length": 16, "attention.head_count_kv": 4}
    dropped = ("attention.key_length_mla", "attention.value_length_mla", "expert_gating_func")
    metadata = {key: value for key, value in metadata.items() if not key.endswith(dropped)}
    metadata |= {f"deepseek2.{key}": value for key, value in changes.items()}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "deepseek2")
    for key, value in metadata.items():
        kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind)
    for key, parts in tensors.items():
        if "_b.weight" not in key or "attn_q" in key:
            stacked = [part.numpy() for part in parts]
            writer.add_tensor(key, np.stack(stacked) if "_exps" in key else stacked[0])
    for layer in range(2):
        whole = model.state_dict()[f"model.layers.{layer}.self_attn.kv_b_proj.weight"]
        writer.add_tensor(f"blk.{layer}.attn_kv_b.weight", whole.numpy())
    finish(writer)
    loaded = load_gguf(tmp_path / "m.gguf", device="cpu").state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in model.state_dict().items())


V2, V3, LLAMA_4 = FIELDS
KEYS: list[tuple[str, dict[str, Any], str]] = [
    (V2, {"attention.layer_norm_rms_epsilon": 1e-5}, "layer_norm_rms_epsilon' is .*; expected 1e-06: llama.cpp takes"),
    (V2, {"leading_dense_block_count": 2}, "leading_dense_block_count' is 2; expected fewer than the 2 layers"),
    (V2, {"attention.key_length": 48}, "attention.key_length' is 48; expected 40"),
    (V2, {"attention.head_count_kv": 4}, "attention.head_count_kv' is 4; expected 1"),
    (V2, {"attention.key_length_mla": 8}, "attention.key_length_mla' is 8; expected the size of a head, above 8"),
    (V2, {"attention.value_length_mla": None}, "attention.value_length_mla' is None; expected the size of a head"),
    (V2, {"expert_gating_func": 3}, "expert_gating_func' is 3; expected 1 .softmax. or 2 .sigmoid."),
    (V2, {"expert_weights_norm": True}, "deepseek2.expert_weights_norm' is True, a key that is not known"),
    (V2, {"expert_group_count": 2}, "expert_group_count' is 2; expected 1: llama.cpp chooses groups by their two"),
    (V3, {"expert_group_used_count": 3}, "topk_group is 3, but n_group is 2"),
    (V3, {"nextn_predict_layers": 1}, "nextn_predict_layers' is 1, a key that is not known"),
    (V3, {"attention.temperature_scale": 0.1}, "attention.temperature_scale' is 0.1, a key that is not known"),
    (V3, {"rope.scaling.type": "yarn"}, "yarn_log_multiplier' is None; expected 0.1 \\* mscale_all_dim"),
    (V3, {"rope.scaling.yarn_beta_fast": 16.0}, "yarn_beta_fast' is 16.0; only 32.0 is supported"),
    (V3, {"attention.kv_lora_rank": "32"}, "attention.kv_lora_rank' is '32'; expected an integer"),
    (V3, {"rope.dimension_count": None}, "metadata 'deepseek2.rope.dimension_count' is missing"),
    (LLAMA_4, {"attention.sliding_window": 1024}, "sliding_window' is 1024; expected 8192, with which llama.cpp"),
    (LLAMA_4, {"attention.sliding_window": 0}, "sliding_window' is 0; expected 8192"),
    (LLAMA_4, {"attention.temperature_scale": 0.2}, "temperature_scale' is 0.2, a key that is not known"),
    (LLAMA_4, {"interleave_moe_layer_step": 0}, "interleave_moe_layer_step' is 0; expected 1 to the 2 layers"),
    (LLAMA_4, {"expert_gating_func": 1}, "expert_gating_func' is 1, a key that is not known"),
]


@pytest.fixture(scope="module")
def contents() -> dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]]:
    found = {}
    for name in FIELDS:
        metadata, tensors = content_of(model_of(name))
        found[name] = metadata, {key: tuple(parts[0].shape) for key, parts in tensors.items()}
    return found


@pytest.mark.parametrize(("name", "changes", "message"), KEYS)
def test_keys_and_values_that_llama_cpp_computes_otherwise_are_refused(
    name: str, changes: dict[str, Any], message: str, contents: dict[str, Any]
) -> None:
    metadata, shapes = contents[name]
    architecture = "llama4" if name == LLAMA_4 else "deepseek2"
    metadata = metadata | {"general.architecture": architecture}
    assert config_from_gguf(Content(metadata, shapes, lambda key: torch.empty(0))).model_type == name
    metadata |= {f"{architecture}.{key}": value for key, value in changes.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        config_from_gguf(Content(metadata, shapes, lambda key: torch.empty(0)))


def test_the_function_of_scores_tells_the_families_apart(contents: dict[str, Any]) -> None:
    metadata, shapes = contents[V2]
    metadata = metadata | {"general.architecture": "deepseek2", "deepseek2.expert_gating_func": 2}
    config = config_from_gguf(Content(metadata, shapes, lambda key: torch.empty(0)))
    assert config.model_type == V3 and config.norm_topk_prob is False  # type: ignore[attr-defined]


def test_a_family_without_a_layout_is_refused() -> None:
    assert all(family.gguf for family in FAMILIES.values())
    with pytest.raises(ValueError, match=r"model_type 'llama' is not written as GGUF; expected one of .*llama4_text"):
        layout_of(dataclasses.replace(FAMILIES["llama"], gguf=None))


def test_layers_with_chunks_may_be_listed() -> None:
    model = model_of("llama4_text")
    model.config = model.config.replace(layer_types=["full_attention", "chunked_attention"])
    metadata, _ = content_of(model)
    assert metadata["llama4.attention.sliding_window_pattern"] == [False, True]
