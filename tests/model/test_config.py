"""LlamaConfig: reading, writing, refused values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bpe_llama.model import LlamaConfig, LlamaForCausalLM
from bpe_llama.model.layers.rope_scaling import inverse_frequencies
from bpe_llama.model.rope_parameters import REQUIRED

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_defaults_follow_from_given_values() -> None:
    config = LlamaConfig(hidden_size=96, num_attention_heads=6)
    assert (config.head_dim, config.num_key_value_heads) == (16, 6)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3"} | {k: v for k, v in LLAMA3.items() if k != "rope_type"}},
        {"rope_parameters": {"rope_theta": 5e5} | LLAMA3},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 5e5} | LLAMA3},
    ],
)
def test_rope_is_read_in_every_spelling(spelling: dict[str, Any]) -> None:
    config = LlamaConfig(**spelling)
    assert config.rope_parameters == {"rope_theta": 5e5} | LLAMA3
    assert (config.rope_theta, config.rope_scaling) == (5e5, LLAMA3)


def test_default_rope_has_no_scaling() -> None:
    assert LlamaConfig().rope_scaling is None
    assert LlamaConfig(rope_scaling={"rope_type": "default"}).rope_scaling is None


def test_replace_changes_one_field() -> None:
    config = LlamaConfig(rope_theta=5e5, rope_scaling=LLAMA3)
    assert config.replace(rope_theta=1e6).rope == config.rope | {"rope_theta": 1e6}
    assert config.replace(rope_scaling=None).rope == {"rope_theta": 5e5, "rope_type": "default"}
    assert config.replace(num_hidden_layers=3).rope == config.rope


def test_json_round_trip(tmp_path: Path) -> None:
    config = LlamaConfig(rope_scaling=LLAMA3, eos_token_id=[2, 7], dtype="bfloat16", tie_word_embeddings=True)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert LlamaConfig.from_json(tmp_path) == config
    assert LlamaConfig.from_json(tmp_path / "config.json") == config


def test_keys_without_effect_and_old_keys() -> None:
    config = LlamaConfig.from_dict({"use_cache": True, "torch_dtype": "float16", "architectures": ["LlamaForCausalLM"]})
    assert config.dtype == "float16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 100, "num_attention_heads": 3},
            "hidden_size (100) is not a multiple of num_attention_heads",
        ),
        ({"num_key_value_heads": 5}, "num_attention_heads (32) is not a multiple of num_key_value_heads (5)"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"head_dim": 7}, "7 of head_dim 7 are rotated"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"eos_token_id": 32_000}, "eos_token_id is 32000, outside the vocabulary of 32000"),
        ({"eos_token_id": [1, 40_000]}, "eos_token_id is 40000"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0; expected a finite number of at least 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_scaling": ["linear", 2]}, "rope_scaling is ['linear', 2]; expected an object of names and values"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": 2, "long_factor": 2}},
            "short_factor is 2; expected a list of 64 numbers",
        ),
        ({"rope_scaling": {"rope_type": "spiral"}}, "rope_type is 'spiral'"),
        ({"rope_scaling": {"rope_type": []}}, "rope_type is []; expected a string"),
        ({"rope_scaling": {"rope_type": "linear"}}, "needs 'factor'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -2}}, "factor is -2"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}}, "it was already given as 2.0"),
    ],
)
def test_refusals_name_the_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        LlamaConfig(**changes)
    assert message in str(caught.value)


def test_a_warning_points_at_the_caller() -> None:
    scaling = {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}
    with pytest.warns(UserWarning, match="rope_type 'linear' does not read beta_fast; ignored$") as warned:
        config = LlamaConfig(rope_scaling=scaling)
    assert warned[0].filename == __file__ and "beta_fast" not in config.rope


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64.0}, "hidden_size is 64.0; expected an integer"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'; expected a number"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'; expected an integer or a list of them"),
        ({"eos_token_id": [2, "x"]}, "eos_token_id is 'x'; expected an integer"),
        ({"eos_token_id": [2, None]}, r"eos_token_id is [2, None]; expected an integer or a list of them"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; expected true or false"),
    ],
)
def test_values_of_the_wrong_type_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        LlamaConfig(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", '{"num_key_value_heads": 5}'])
def test_a_bad_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        LlamaConfig.from_json(path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LlamaConfig.from_json(tmp_path)


SMOLLM2 = """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
"bos_token_id": 1,
"eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
"intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
"model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2,
"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
"tie_word_embeddings": true, "torch_dtype": "bfloat16",
"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
"transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152}"""
LLAMA_3_2 = """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu",
"hidden_size": 2048,
"initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
"pretraining_tp": 1,
"rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
"original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": true,
"torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256}"""
MISTRAL_V1 = """{"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
"hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
"model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
"rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false,
"torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000}"""
MIXTRAL = """{"architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
"hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
"max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2,
"num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": false,
"rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": null,
"tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.36.0.dev0", "use_cache": true,
"vocab_size": 32000}"""
YARN = """{"_name_or_path": "llama", "architectures": ["LlamaForCausalLM"], "auto_map": {"AutoModelForCausalLM":
"modeling_llama_together_yarn.LlamaForCausalLM"}, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
"hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 65536,
"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 0,
"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 16.0, "finetuned": true,
"original_max_position_embeddings": 4096, "type": "yarn"}, "rope_theta": 10000.0, "tie_word_embeddings": false,
"torch_dtype": "bfloat16", "transformers_version": "4.33.0.dev0", "use_cache": true, "vocab_size": 32000,
"max_sequence_length": 2048, "torchscript": false, "pruned_heads": {}, "mlp_only_layers": [], "num_beams": 1,
"task_specific_params": null, "is_decoder": false, "use_bfloat16": false, "tie_encoder_decoder": false}"""
LLAMA_2 = """{"architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
"hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false,
"torch_dtype": "float16", "use_cache": true, "vocab_size": 32000}"""
LLAMA_3 = """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000,
"eos_token_id": 128001, "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 8192,
"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
"rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
"vocab_size": 128256}"""
PUBLISHED = [(SMOLLM2, 134_515_008), (LLAMA_2, 6_738_415_616), (LLAMA_3, 8_030_261_248), (LLAMA_3_2, 1_235_814_400)]
PUBLISHED += [(MISTRAL_V1, 7_241_732_096), (MIXTRAL, 46_702_792_704), (YARN, 6_738_415_616)]


@pytest.mark.parametrize(("text", "parameters"), PUBLISHED)
def test_published_configs_are_read_without_a_warning(text: str, parameters: int, tmp_path: Path) -> None:
    stated = json.loads(text)
    (tmp_path / "config.json").write_text(text)
    config = LlamaConfig.from_json(tmp_path)
    for name, value in config.to_dict().items():
        if name in stated and name != "rope_scaling":
            assert value == stated[name], name
    for name, value in (stated.get("rope_scaling") or {}).items():
        assert name == "finetuned" or config.rope["rope_type" if name == "type" else name] == value
    assert LlamaConfig.from_dict(config.to_dict()) == config
    assert config.context_length == stated["max_position_embeddings"]
    model = LlamaForCausalLM(config, device="meta")
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    with torch.device("meta"):
        assert LlamaForCausalLM(config).device.type == "meta"


@pytest.mark.parametrize(
    ("stated", "scaling", "length"),
    [
        (32_768, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}, 131_072),  # Qwen 2.5
        (40_960, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}, 131_072),  # Qwen 3
        (163_840, {"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}, 163_840),  # DeepSeek
        (65_536, {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192}, 65_536),  # OLMo 3
        (4096, {"rope_type": "dynamic", "factor": 2.0}, 8192),
        (131_072, LLAMA3, 131_072),
    ],
)
def test_context_length(stated: int, scaling: dict[str, Any], length: int) -> None:
    assert LlamaConfig(max_position_embeddings=stated, rope_scaling=scaling).context_length == length


@pytest.mark.parametrize("rope_type", REQUIRED)
def test_every_rope_type_has_its_frequencies(rope_type: str) -> None:
    values: dict[str, Any] = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "low_freq_factor": 1.0}
    rope = {"rope_type": rope_type, "rope_theta": 1e4, "original_max_position_embeddings": 32}
    rope |= {name: values.get(name, 4.0) for name in REQUIRED[rope_type]}
    frequencies, factor = inverse_frequencies(rope, 16, 128, 64)
    assert len(frequencies) == 8 and all(f > 0 for f in frequencies) and factor > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 100_000}, "num_hidden_layers is 100000; expected at most 4,096"),
        ({"num_local_experts": 100_000}, "num_local_experts is 100000; expected at most 4,096"),
        ({"num_local_experts": 4096, "num_hidden_layers": 33}, "4096 in 33 layers .* at most 131,072 experts"),
        ({"head_dim": 10**9}, "head_dim is 1000000000; expected at most 65,536"),
        ({"hidden_size": 2**63}, "hidden_size is 9223372036854775808; expected at most 4,194,304"),
        ({"vocab_size": 10**30}, "vocab_size is 1000000000000000000000000000000; expected at most"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1000.*; expected a finite number"),
        ({"rope_theta": float("inf")}, "rope_theta is inf; expected a positive number"),
        ({"rope_theta": 1e-320}, "rope_theta is 1e-320; expected a positive number"),
        ({"rope_theta": 1.0, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_theta is 1.0; expected"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": -1.0}}, "beta_fast is -1.0; expected"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": float("nan")}}, "factor is nan; expected"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "head_dim": 2}, "expected at least 4"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [0]}, "head_dim": 2},
            "long_factor has 0; expected positive numbers",
        ),
    ],
)
def test_sizes_and_numbers_have_bounds_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "mixtral" if "num_local_experts" in changes else "llama", **changes}))
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        LlamaConfig.from_json(path)


def test_llama3_factors_may_be_equal() -> None:
    """As in Llama 4; transformers divides by zero for a frequency at the boundary."""
    at = 1 / (2 * torch.pi)
    rope = LLAMA3 | {"rope_theta": 1.0, "low_freq_factor": at, "high_freq_factor": at}
    assert inverse_frequencies(rope | {"original_max_position_embeddings": 1}, 4, 8, 8)[0] == [1.0, 1.0]


def test_num_labels_of_a_file_decides_as_in_transformers() -> None:
    """Before, the number of names did."""
    values = {"num_labels": 5, "id2label": {"0": "no", "1": "yes"}}
    with pytest.warns(UserWarning, match="num_labels is 5, but id2label has 2 names"):
        config = LlamaConfig.from_dict(values)
    assert config.num_labels == 5 and config.label_names[:2] == ["LABEL_0", "LABEL_1"]


def test_derived_sizes_follow_replaced_ones() -> None:
    """Before, they kept the value that followed from the old sizes."""
    config = LlamaConfig(hidden_size=64, num_attention_heads=4)
    wide, few = config.replace(hidden_size=128), config.replace(num_attention_heads=2)
    assert (wide.head_dim, wide.num_key_value_heads) == (32, 4)
    assert (few.head_dim, few.num_key_value_heads) == (32, 2)
    assert config.replace(hidden_size=128, head_dim=16).head_dim == 16
    grouped = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    wide, many = grouped.replace(hidden_size=128), grouped.replace(num_attention_heads=8)
    assert (wide.head_dim, many.num_key_value_heads) == (8, 2)
