"""Folders in all layouts, and those that we save: transformers' logits, or the error names the file or tensor."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from bpe_llama.model import LlamaConfig, LlamaForCausalLM
from bpe_llama.model.llama import LlamaModel
from tests.parity.folders.written import (
    FAMILIES,
    IDS,
    LLAMA3,
    LONG,
    SHAPE,
    both,
    edit,
    make,
    one_bin,
    put,
    rename,
    rewrite,
    shards,
)
from tests.small_models import perturb_vectors

transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers installed")
pytestmark = pytest.mark.usefixtures("quiet_transformers")


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED = {"tie_word_embeddings": True}


def without_prefix(folder: Path) -> None:
    rename(folder, lambda name: name.removeprefix("model."))


def with_old_buffers(folder: Path) -> None:
    for name, shape in {"inv_freq": (4,), "cos_cached": (1, 1, 9, 8)}.items():
        put(folder, f"model.layers.0.self_attn.rotary_emb.{name}", torch.ones(shape))


def with_equal_head(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors | {HEAD: tensors[EMBEDDING].clone()})


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
    "tied": (TIED, lambda folder: None),
    "tied, .bin": (TIED, one_bin),
    "tied, equal head stored": (TIED, with_equal_head),
    "tied, head stored alone": (TIED, lambda folder: rename(folder, lambda name: name.replace(EMBEDDING, HEAD))),
    "no prefix": ({}, without_prefix),
    "no prefix, tied": (TIED, without_prefix),
    "old buffers": ({}, with_old_buffers),
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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout(family: str, layout: str, tmp_path: Path) -> None:
    changes, arrange = LAYOUTS[layout]
    arrange(make(tmp_path, family, **changes))
    ours, theirs = both(tmp_path)
    if ours.dtype != torch.float32:  # bfloat16 rounds: both are loaded in float32 instead
        ours, theirs = both(tmp_path, dtype=torch.float32)
    assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_differs_from_the_embedding_is_loaded_with_a_warning(family: str, tmp_path: Path) -> None:
    make(tmp_path, family, tie_word_embeddings=True)
    head = torch.randn(101, 64, generator=torch.Generator().manual_seed(2))
    put(tmp_path, HEAD, head)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with pytest.warns(
        UserWarning, match=r"tie_word_embeddings is true, but lm_head\.weight is stored and differs"
    ) as said:
        ours = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    assert said[0].filename == __file__
    assert torch.equal(ours.lm_head.weight, head) and not ours.config.tie_word_embeddings
    assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0)
    ours.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert_close(ours(IDS).logits, again(IDS).logits, atol=1e-4, rtol=0)


def test_an_adapter_beside_the_weights_warns(tmp_path: Path) -> None:
    make(tmp_path, "llama")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"adapter_config\.json; the adapter is not applied"):
        LlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_without_a_head(tied: bool, tmp_path: Path) -> None:
    make(tmp_path, "llama", tie_word_embeddings=tied)
    theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
    ours = LlamaModel.from_pretrained(tmp_path, device="cpu")
    assert_close(ours(IDS), theirs(IDS).last_hidden_state, atol=1e-4, rtol=0)


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
    save_file(load_file(path) | {HEAD: torch.zeros(101, 64)}, path)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated shard": (break_shard, r"pytorch_model-00002-of-00003\.bin: damaged"),
    "absent shard": (lose_shard, r"shards that are absent: model-00002-of-00003\.safetensors"),
    "absent index": (lose_index, r"pytorch_model-00001-of-00003\.bin is a shard, whose index is"),
    "twice": (double, r"holds lm_head\.weight, and so does model-0000\d-of-00003\.safetensors with other"),
    "both names": (
        lambda f: put(f, "norm.weight", torch.ones(64)),
        "holds both .*norm.weight and .*norm.weight, which name the same tensor",
    ),
    "biases that the config denies": (
        lambda f: put(f, "model.layers.0.self_attn.q_proj.bias", torch.zeros(64)),
        r"unexpected: model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    "another prefix": (
        lambda f: rename(f, lambda name: f"_orig_mod.{name}"),
        r"missing: .*unexpected: _orig_mod\.lm_head\.weight",
    ),
    "integers": (
        lambda f: put(f, "model.norm.weight", torch.ones(64, dtype=torch.int8)),
        r"model\.safetensors: model\.norm\.weight is stored as I8; expected float32, bfloat16, float16, float64",
    ),
    "wrong shape": (
        lambda f: edit(f, num_key_value_heads=4),
        r"misshapen: model\.layers\.0\.self_attn\.k_proj\.weight is \[16, 64\], expected \[32, 64\]",
    ),
    "no head": (
        lambda f: rewrite(f, lambda tensors: {name: tensors[name] for name in tensors if name != HEAD}),
        r"missing: lm_head\.weight",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damage_is_named(case: str, tmp_path: Path) -> None:
    change, message = BROKEN[case]
    change(make(tmp_path, "llama"))
    with pytest.raises(FileNotFoundError if "absent" in case else ValueError, match=message) as caught:
        LlamaForCausalLM.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a checkpoint ran",)


def test_only_tensors_are_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_bin(make(tmp_path, "llama"))
    torch.save({HEAD: _Harmful()}, tmp_path / "pytorch_model.bin")
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
def test_transformers_computes_what_we_save_or_we_refuse(option: str, tmp_path: Path) -> None:
    config = LlamaConfig(**(SHAPE | OPTIONS[option]))
    ours = LlamaForCausalLM(config, seed=3).eval()
    perturb_vectors(ours)
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
            expected = theirs.eval()(IDS).logits
        assert_close(ours(IDS).logits, expected, atol=1e-4, rtol=1e-5)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, device="cpu")
    assert torch.equal(loaded(IDS).logits, ours(IDS).logits)
