"""Folders in all layouts: the logits equal transformers', or the error names the key, file or tensor."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from bpe_llama.model import LlamaConfig, LlamaForCausalLM
from bpe_llama.model.llama import LlamaModel
from tests.small_models import SMALL, perturb_vectors

transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers installed")
pytestmark = pytest.mark.usefixtures("quiet_transformers")

SHAPE = SMALL | {"num_attention_heads": 8, "max_position_embeddings": 128}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 7},
    "mixtral": {"num_key_value_heads": 4, "num_local_experts": 4, "head_dim": 8},
}


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 101, (2, 60), generator=torch.Generator().manual_seed(1))


def make(folder: Path, family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write a folder with transformers."""
    kind = {"llama": "Llama", "mistral": "Mistral", "mixtral": "Mixtral"}[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(SHAPE | FAMILIES[family] | changes))
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    perturb_vectors(model)
    model.to(dtype).save_pretrained(folder)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of the config; ``...`` removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def shards(folder: Path, suffix: str, parts: int = 3) -> None:
    """Split the weights into shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    start = "model" if suffix == "safetensors" else "pytorch_model"
    names, weight_map = sorted(tensors), {}
    for part in range(parts):
        file = f"{start}-{part + 1:05}-of-{parts:05}.{suffix}"
        held = {name: tensors[name] for name in names[part::parts]}
        if suffix == "safetensors":
            save_file(held, folder / file, metadata={"format": "pt"})
        else:
            torch.save(held, folder / file)
        weight_map |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{start}.{suffix}.index.json").write_text(json.dumps(index))


def one_bin(folder: Path, legacy: bool = False) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)


def without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def with_old_buffers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    old = "model.layers.0.self_attn.rotary_emb"
    return tensors | {f"{old}.inv_freq": torch.ones(4), f"{old}.cos_cached": torch.ones(1, 1, 9, 8)}


def with_equal_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def head_alone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "lm_head.weight" if name == "model.embed_tokens.weight" else name: tensor for name, tensor in tensors.items()
    }


OLD_KEYS = {
    "dtype": ...,
    "torch_dtype": "float32",
    "rope_parameters": ...,
    "rope_theta": 50_000.0,
    "rope_scaling": None,
    "pretraining_tp": 3,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "use_cache": True,
    "head_dim": None,
    "pad_token_id": -1,
    "_name_or_path": "/home/someone/llama",
    "transformers_version": "4.31.0",
    "tie_word_embeddings": False,
    "unsloth_version": "2024.9",
    "add_cross_attention": False,
    "quantization_config": None,
    "top_k": 50,
}
LAYOUTS: dict[str, tuple[dict[str, Any], Callable[[Path], object]]] = {
    "one file": ({}, lambda folder: None),
    "shards": ({}, lambda folder: shards(folder, "safetensors")),
    "one .bin": ({}, one_bin),
    "one .bin of torch 1.5": ({}, lambda folder: one_bin(folder, legacy=True)),
    ".bin shards": ({}, lambda folder: shards(folder, "bin")),
    "bfloat16": ({"dtype": torch.bfloat16}, lambda folder: None),
    "float16": ({"dtype": torch.float16}, lambda folder: shards(folder, "bin")),
    "float16, and no word of it": ({"dtype": torch.float16}, lambda folder: edit(folder, dtype=...)),
    "tied": ({"tie_word_embeddings": True}, lambda folder: None),
    "tied, .bin": ({"tie_word_embeddings": True}, one_bin),
    "tied, equal head stored": ({"tie_word_embeddings": True}, lambda folder: rewrite(folder, with_equal_head)),
    "tied, head stored alone": ({"tie_word_embeddings": True}, lambda folder: rewrite(folder, head_alone)),
    "no prefix": ({}, lambda folder: rewrite(folder, without_prefix)),
    "no prefix, tied": ({"tie_word_embeddings": True}, lambda folder: rewrite(folder, without_prefix)),
    "old buffers": ({}, lambda folder: rewrite(folder, with_old_buffers)),
    "old keys": ({}, lambda folder: edit(folder, **OLD_KEYS)),
    "head_dim left out": ({}, lambda folder: edit(folder, head_dim=...)),
    "theta beside the parameters": ({}, lambda f: edit(f, rope_parameters={"rope_type": "default"}, rope_theta=3e4)),
    "no rotary keys": ({}, lambda folder: edit(folder, rope_parameters=...)),
    "linear, old spelling": (
        {},
        lambda folder: edit(folder, rope_parameters=..., rope_scaling={"type": "linear", "factor": 2.0}),
    ),
    "both spellings of the rope type": (
        {},
        lambda f: edit(f, rope_parameters=..., rope_scaling={"type": "linear", "rope_type": "linear", "factor": 2.0}),
    ),
    "null keys": ({}, lambda folder: edit(folder, rope_scaling=None, pretraining_tp=None, layer_norm_eps=None)),
}


def both(folder: Path, ids: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    ours = LlamaForCausalLM.from_pretrained(folder, device="cpu", **options)
    assert str(ours.dtype) == str(theirs.dtype)
    return ours(ids).logits, theirs(ids).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout(family: str, layout: str, ids: Tensor, tmp_path: Path) -> None:
    changes, arrange = LAYOUTS[layout]
    arrange(make(tmp_path, family, **changes))
    ours, theirs = both(tmp_path, ids)
    if ours.dtype == torch.float32:
        assert_close(ours, theirs, atol=1e-4, rtol=0)
    else:  # bfloat16 rounds: both are loaded in float32 instead
        ours, theirs = both(tmp_path, ids, dtype=torch.float32)
        assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_differs_from_the_embedding_is_loaded_with_a_warning(
    family: str, ids: Tensor, tmp_path: Path
) -> None:
    make(tmp_path, family, tie_word_embeddings=True)
    head = torch.randn(101, 64, generator=torch.Generator().manual_seed(2))
    rewrite(tmp_path, lambda tensors: tensors | {"lm_head.weight": head})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with pytest.warns(
        UserWarning, match=r"tie_word_embeddings is true, but lm_head\.weight is stored and differs"
    ) as said:
        ours = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    assert said[0].filename == __file__
    assert torch.equal(ours.lm_head.weight, head) and not ours.config.tie_word_embeddings
    assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)
    ours.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert_close(ours(ids).logits, again(ids).logits, atol=1e-4, rtol=0)


def test_an_adapter_beside_the_weights_warns(tmp_path: Path) -> None:
    make(tmp_path, "llama")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"adapter_config\.json; the adapter is not applied"):
        LlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_without_a_head(tied: bool, ids: Tensor, tmp_path: Path) -> None:
    make(tmp_path, "llama", tie_word_embeddings=tied)
    theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
    ours = LlamaModel.from_pretrained(tmp_path, device="cpu")
    assert_close(ours(ids), theirs(ids).last_hidden_state, atol=1e-4, rtol=0)


LONG = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [4.0, 5.0, 7.0, 9.0]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
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
    "nothing left of it": {"rope_scaling": {}},
    "null parameters": {"rope_parameters": None, "rope_theta": 3e4},
    "partial rotation of all": {"partial_rotary_factor": 1.0, "rope_theta": 3e4},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rope", ROPES)
def test_rope_spellings(family: str, rope: str, ids: Tensor, tmp_path: Path) -> None:
    make(tmp_path, family)
    edit(tmp_path, **({"rope_parameters": ...} | ROPES[rope]))
    ours, theirs = both(tmp_path, ids)
    assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_su_is_longrope(ids: Tensor, tmp_path: Path) -> None:
    make(tmp_path, "llama")
    edit(tmp_path, rope_parameters=..., original_max_position_embeddings=32, rope_scaling={"type": "longrope"} | LONG)
    _, theirs = both(tmp_path, ids)
    edit(tmp_path, rope_scaling={"type": "su"} | LONG)  # transformers' llama does not know this name
    ours = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")(ids).logits
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
def test_keys_that_transformers_ignores_warn(case: str, ids: Tensor, tmp_path: Path) -> None:
    family, changes, message = PASSED_OVER[case]
    edit(make(tmp_path, family), **changes)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with pytest.warns(UserWarning, match=message):
        ours = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)


QUIET: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, window off": ("llama", {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 2}),
    "mistral, window null": ("mistral", {"sliding_window": None, "use_sliding_window": False}),
    "mistral, window left out": ("mistral", {"sliding_window": ...}),
    "mistral, all layers slide": ("mistral", {"layer_types": ["sliding_attention"] * 2}),
    "mistral, no layer slides": ("mistral", {"layer_types": ["full_attention"] * 2}),
    "mixtral, window": ("mixtral", {"sliding_window": 9}),
    "mixtral, other name": ("mixtral", {"num_local_experts": ..., "num_experts": 4}),
    "mixtral, eps left out": ("mixtral", {"rms_norm_eps": ...}),
    "eps as a power": ("llama", {"rms_norm_eps": 1e-3}),
}


@pytest.mark.parametrize("case", QUIET)
def test_keys_that_transformers_reads(case: str, ids: Tensor, tmp_path: Path) -> None:
    family, changes = QUIET[case]
    edit(make(tmp_path, family), **changes)
    ours, theirs = both(tmp_path, ids)
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
        "quantization_config is {'quant_method': 'gptq', 'bits': 4}; quantized Hugging Face weights are not read",
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
    "mixed layers": (
        "mistral",
        {"layer_types": ["full_attention", "sliding_attention"]},
        "layer_types is ['full_attention', 'sliding_attention']; expected one type",
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
    "other architecture": ("llama", {"model_type": "qwen2"}, "model_type is 'qwen2'; expected one of llama, mistral"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_keys_are_refused_by_name(case: str, tmp_path: Path) -> None:
    family, changes, message = REFUSED[case]
    edit(make(tmp_path, family), **changes)
    with pytest.raises(ValueError) as caught:
        LlamaForCausalLM.from_pretrained(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


def break_shard(folder: Path) -> None:
    shards(folder, "bin")
    path = folder / "pytorch_model-00002-of-00003.bin"
    path.write_bytes(path.read_bytes()[:-3000])


def lose_shard(folder: Path) -> None:
    shards(folder, "safetensors")
    (folder / "model-00002-of-00003.safetensors").unlink()


def lose_index(folder: Path) -> None:
    shards(folder, "bin")
    (folder / "pytorch_model.bin.index.json").unlink()


def double(folder: Path) -> None:
    shards(folder, "safetensors")
    path = folder / "model-00002-of-00003.safetensors"
    save_file(load_file(path) | {"lm_head.weight": torch.zeros(101, 64)}, path)


BROKEN: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "truncated shard": (break_shard, ValueError, r"pytorch_model-00002-of-00003\.bin: damaged"),
    "absent shard": (lose_shard, FileNotFoundError, r"shards that are absent: model-00002-of-00003\.safetensors"),
    "absent index": (lose_index, FileNotFoundError, r"pytorch_model-00001-of-00003\.bin is a shard, whose index is"),
    "twice": (double, ValueError, r"holds lm_head\.weight, and so does model-0000\d-of-00003\.safetensors with other"),
    "both names": (
        lambda f: rewrite(f, lambda tensors: tensors | {"norm.weight": torch.ones(64)}),
        ValueError,
        "holds both .*norm.weight and .*norm.weight, which name the same tensor",
    ),
    "biases that the config denies": (
        lambda f: rewrite(f, lambda tensors: tensors | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}),
        ValueError,
        r"unexpected: model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    "another prefix": (
        lambda f: rewrite(f, lambda tensors: {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}),
        ValueError,
        r"missing: .*unexpected: _orig_mod\.lm_head\.weight",
    ),
    "integers": (
        lambda f: rewrite(f, lambda tensors: tensors | {"model.norm.weight": torch.ones(64, dtype=torch.int8)}),
        ValueError,
        r"model\.safetensors: model\.norm\.weight is stored as I8; expected float32, bfloat16, float16, float64",
    ),
    "wrong shape": (
        lambda f: edit(f, num_key_value_heads=4),
        ValueError,
        r"misshapen: model\.layers\.0\.self_attn\.k_proj\.weight is \[16, 64\], expected \[32, 64\]",
    ),
    "no head": (
        lambda f: rewrite(f, lambda t: {name: tensor for name, tensor in t.items() if name != "lm_head.weight"}),
        ValueError,
        r"missing: lm_head\.weight",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damage_is_named(case: str, tmp_path: Path) -> None:
    change, kind, message = BROKEN[case]
    change(make(tmp_path, "llama"))
    with pytest.raises(kind, match=message) as caught:
        LlamaForCausalLM.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a checkpoint ran",)


def test_only_tensors_are_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_bin(make(tmp_path, "llama"))
    torch.save({"lm_head.weight": _Harmful()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: damaged, or not a file of tensors alone"):
        LlamaForCausalLM.from_pretrained(tmp_path)
    assert "ran" not in capsys.readouterr().out


# ---- saving

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "heads that do not divide the width": {"num_attention_heads": 5, "head_dim": 8},
    "the same, with biases": {"num_attention_heads": 5, "head_dim": 8, "attention_bias": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "window": {"sliding_window": 7},
    "window and biases": {"sliding_window": 7, "attention_bias": True},
    "window and mlp biases": {"sliding_window": 7, "mlp_bias": True},
    "experts": {"num_local_experts": 4},
    "one expert": {"num_local_experts": 1, "num_experts_per_tok": 1},
    "experts and window": {"num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 7},
    "experts and biases": {"num_local_experts": 4, "attention_bias": True},
    "mistral without a window": {"model_type": "mistral"},
    "no positions": {"position_encoding": "none"},
    "sinusoidal": {"position_encoding": "sinusoidal"},
    "half a rotation": {"rope_parameters": {"partial_rotary_factor": 0.5}},
    "eps 0": {"rms_norm_eps": 0},
    "wide initialization": {"initializer_range": 2},
    "swish": {"hidden_act": "swish"},
    "slices": {"pretraining_tp": 2, "vocab_size": 102},
    "tied": {"tie_word_embeddings": True},
    "several ends": {"eos_token_id": [2, 7], "pad_token_id": 0, "bos_token_id": None},
    "no end": {"eos_token_id": None},
    "float64": {"dtype": "float64"},
    "router losses": {"num_local_experts": 4, "router_aux_loss_coef": 0, "router_z_loss_coef": 0.1},
    "classes": {"num_labels": 5, "problem_type": "regression"},
    "theta": {"rope_theta": 500_000},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2}},
    "su": {"rope_scaling": {"type": "su", "original_max_position_embeddings": 32} | LONG},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 32},
    "llama3": {"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 32} | LLAMA3},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
}
NOT_THEIRS = {
    "the same, with biases": "attention_bias",
    "window and biases": "attention_bias",
    "window and mlp biases": "mlp_bias",
    "experts and biases": "attention_bias",
    "no positions": "position_encoding",
    "sinusoidal": "position_encoding",
    "half a rotation": "partial_rotary_factor",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_transformers_computes_what_we_save_or_we_refuse(option: str, ids: Tensor, tmp_path: Path) -> None:
    config = LlamaConfig(**(SHAPE | OPTIONS[option]))
    ours = LlamaForCausalLM(config, seed=3).eval()
    for name, weight in ours.named_parameters():
        if weight.ndim == 1:
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2)
    if option in NOT_THEIRS:
        with pytest.raises(ValueError, match=rf"{NOT_THEIRS[option]} is .*, which transformers' .* does not compute"):
            ours.save_pretrained(tmp_path)
        assert not list(tmp_path.iterdir())
        ours.save_pretrained(tmp_path, portable=False)
        with pytest.raises(ValueError, match="bpe_llama"):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    else:
        ours.save_pretrained(tmp_path)
        theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected = theirs.eval()(ids).logits
        assert_close(ours(ids).logits, expected, atol=1e-4, rtol=1e-5)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    assert torch.equal(loaded(ids).logits, ours(ids).logits)
