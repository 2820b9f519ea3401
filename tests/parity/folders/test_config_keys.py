"""Keys of a config.json: the logits equal transformers', or a warning or an error names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.testing import assert_close

from bpe_llama.model import LlamaConfig, LlamaForCausalLM
from tests.parity.folders.written import FAMILIES, IDS, LLAMA3, LONG, both, edit, make

transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers installed")
pytestmark = pytest.mark.usefixtures("quiet_transformers")

ROPES: dict[str, dict[str, Any]] = {
    "longrope, length beside it": {
        "rope_scaling": {"type": "longrope"} | LONG,
        "original_max_position_embeddings": 32,
    },
    "longrope, length in it": {"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 32} | LONG},
    "longrope, different lengths": {
        "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 100} | LONG,
        "original_max_position_embeddings": 32,
    },
    "longrope, no length": {"rope_scaling": {"rope_type": "longrope"} | LONG},
    "longrope, factor and attention": {
        "rope_scaling": {"rope_type": "longrope", "factor": 16.0, "attention_factor": 1.1} | LONG,
        "original_max_position_embeddings": 32,
    },
    "yarn, length beside it": {
        "rope_scaling": {"type": "yarn", "factor": 4.0},
        "original_max_position_embeddings": 32,
    },
    "yarn, finetuned": {"rope_scaling": {"type": "yarn", "factor": 4.0, "finetuned": True}, "rope_theta": 1e5},
    "llama3, length beside it": {
        "rope_scaling": {"rope_type": "llama3"} | LLAMA3,
        "original_max_position_embeddings": 32,
    },
    "llama3, new spelling": {
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "original_max_position_embeddings": 32} | LLAMA3
    },
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 3.0}, "max_position_embeddings": 40},
    "both names of the type": {"rope_scaling": {"type": "dynamic", "rope_type": "linear", "factor": 3.0}},
    "nothing left of it": {"rope_scaling": {}},
    "null parameters": {"rope_parameters": None, "rope_theta": 3e4},
    "partial rotation of all": {"partial_rotary_factor": 1.0, "rope_theta": 3e4},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rope", ROPES)
def test_rope_spellings(family: str, rope: str, tmp_path: Path) -> None:
    make(tmp_path, family)
    edit(tmp_path, **({"rope_parameters": ...} | ROPES[rope]))
    ours, theirs = both(tmp_path)
    assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_su_is_longrope(tmp_path: Path) -> None:
    make(tmp_path, "llama")
    edit(tmp_path, rope_parameters=..., original_max_position_embeddings=32, rope_scaling={"type": "longrope"} | LONG)
    _, theirs = both(tmp_path)
    edit(tmp_path, rope_scaling={"type": "su"} | LONG)  # transformers' llama does not know this name
    ours = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")(IDS).logits
    assert_close(ours, theirs, atol=1e-4, rtol=0)


PASSED_OVER: dict[str, tuple[str, dict[str, Any], str]] = {
    "a window in a llama": (
        "llama",
        {"sliding_window": 7},
        "sliding_window is 7, but transformers' llama attends to all",
    ),
    "a window in use": (
        "llama",
        {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1},
        "is 7, but",
    ),
    "a window not in use": ("mistral", {"use_sliding_window": False}, "use_sliding_window is False, but transformers'"),
    "layer types and a window not in use": (
        "mistral",
        {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": False},
        "use_sliding_window is False, but transformers' ministral does not read it",
    ),
    "layers without": (
        "mistral",
        {"use_sliding_window": True, "max_window_layers": 1},
        "use_sliding_window is True, but",
    ),
    "layer types": (
        "llama",
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 7},
        "sliding_window is 7, but",
    ),
    "dropout": ("llama", {"resid_pdrop": 0.1}, "resid_pdrop is 0.1; it is not applied in training here"),
    "an end beyond": (
        "llama",
        {"eos_token_id": [2, 500]},
        r"eos_token_id is \[2, 500\], outside the vocabulary of 101",
    ),
    "a beginning beyond": ("mistral", {"bos_token_id": 101}, "bos_token_id is 101, outside the vocabulary of 101"),
    "unread": ("llama", {"rope_parameters": {"rope_type": "default", "factor": 8.0}}, "'default' does not read factor"),
}


@pytest.mark.parametrize("case", PASSED_OVER)
def test_keys_that_transformers_ignores_warn(case: str, tmp_path: Path) -> None:
    family, changes, message = PASSED_OVER[case]
    edit(make(tmp_path, family), **changes)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with pytest.warns(UserWarning, match=message):
        ours = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0)


QUIET: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, window off": ("llama", {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 2}),
    "mistral, window null": ("mistral", {"sliding_window": None, "use_sliding_window": False}),
    "mistral, window left out": ("mistral", {"sliding_window": ...}),
    "mistral, all layers slide": ("mistral", {"layer_types": ["sliding_attention"] * 2}),
    "mistral, no layer slides": ("mistral", {"layer_types": ["full_attention"] * 2}),
    "mistral, one layer slides": ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}),
    "mixtral, window": ("mixtral", {"sliding_window": 9}),
    "mixtral, other name": ("mixtral", {"num_local_experts": ..., "num_experts": 4}),
    "mixtral, eps left out": ("mixtral", {"rms_norm_eps": ...}),
    "eps as a power": ("llama", {"rms_norm_eps": 1e-3}),
}


@pytest.mark.parametrize("case", QUIET)
def test_keys_that_transformers_reads(case: str, tmp_path: Path) -> None:
    family, changes = QUIET[case]
    edit(make(tmp_path, family), **changes)
    ours, theirs = both(tmp_path)
    assert_close(ours, theirs, atol=1e-4, rtol=0)


SPELT_OTHERWISE = ("dtype", "head_dim", "id2label", "label2id", "rope_scaling", "num_labels")


def test_the_defaults_of_a_family_are_those_of_transformers() -> None:
    for family in FAMILIES:
        theirs = getattr(transformers, f"{family.capitalize()}Config")()
        ours = LlamaConfig.from_dict({"model_type": family})
        for name, value in ours.to_dict().items():
            if hasattr(theirs, name) and name not in SPELT_OTHERWISE:
                assert value == getattr(theirs, name), (family, name)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "quantized": (
        "llama",
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "quantization_config is {'bits': 4, 'quant_method': 'gptq'}; quantized Hugging Face weights are not read",
    ),
    "unknown": ("llama", {"logit_scale": 0.5}, "logit_scale is 0.5, a key that is not known here"),
    "softcapping": ("mistral", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping is 30.0"),
    "no rotation": ("llama", {"no_rope_layers": [1, 0]}, "no_rope_layers is [1, 0]"),
    "not causal": ("llama", {"is_causal": False}, "is_causal is False"),
    "partial rotation": (
        "llama",
        {"partial_rotary_factor": 0.5},
        "partial_rotary_factor is 0.5, but transformers' llama",
    ),
    "partial rotation within": (
        "mistral",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor is 0.5, but transformers' mistral",
    ),
    "positions": ("llama", {"position_encoding": "none"}, "position_encoding is 'none', which transformers' llama"),
    "biases": ("mistral", {"attention_bias": True}, "attention_bias is true, but transformers' mistral has no biases"),
    "experts": ("llama", {"num_local_experts": 4}, "num_local_experts is 4, but model_type is 'llama'"),
    "too many layers": (
        "mistral",
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "expected one type for each of num_hidden_layers",
    ),
    "nested": (
        "llama",
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e4}}},
        "rope_parameters states RoPE parameters for each layer type (full_attention)",
    ),
    "mrope": (
        "llama",
        {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        "rope_scaling has 'mrope_section'",
    ),
    "rope type": (
        "llama",
        {"rope_parameters": {"rope_type": "spiral"}},
        "rope_type is 'spiral'; expected one of default",
    ),
    "padding beyond": ("llama", {"pad_token_id": 101}, "pad_token_id is 101, outside the vocabulary of 101"),
    "activation": ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "other architecture": ("llama", {"model_type": "falcon"}, "model_type is 'falcon'; expected one of "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_keys_are_refused_by_name(case: str, tmp_path: Path) -> None:
    family, changes, message = REFUSED[case]
    edit(make(tmp_path, family), **changes)
    with pytest.raises(ValueError) as caught:
        LlamaForCausalLM.from_pretrained(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)
