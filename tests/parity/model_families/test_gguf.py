"""Every model family as GGUF: what we write and read, against llama.cpp, its converter and transformers."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.testing import assert_close

from bench import data
from bench.llama_cpp import LlamaCpp
from bpe_llama.model import LlamaConfig, LlamaForCausalLM
from bpe_llama.model.checkpoints.gguf_write import content_of, save_gguf
from bpe_llama.model.family import FAMILIES
from tests.parity.model_families.cases import MODEL_FAMILIES, SHAPE
from tests.parity.model_families.test_model_families import ids_of
from tests.small_models import perturb_vectors

gguf = pytest.importorskip("gguf", reason="the gguf package reads what we write")

pytestmark = pytest.mark.usefixtures("quiet_transformers")

VOCABULARY = SHAPE["vocab_size"]
TOKENIZER = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": [f"t{token:03}" for token in range(VOCABULARY)],
    "tokenizer.ggml.scores": [float(-token) for token in range(VOCABULARY)],
    "tokenizer.ggml.token_type": [1] * VOCABULARY,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_bos_token": False,
}
"""Of printable tokens, since llama.cpp gives no probabilities of a token that is half a character."""

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 8192
DEEP = {"hidden_size": 32, "intermediate_size": 32}
FULL, SLIDING = "full_attention", "sliding_attention"
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": False}
MULTIPLIERS = {"embedding_multiplier": 3.0, "attention_multiplier": 0.15, "residual_multiplier": 0.7}
MULTIPLIERS["logits_scaling"] = 8.0
LINEAR = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
PHI = {"original_max_position_embeddings": 16}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]}
LONGROPE["long_factor"] = [1.5, 3.5, 5.5, 7.5, 9.5, 11.5]
CAPPED = {"head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
GEMMA_3 = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5}
NOT_WRITTEN = {"deepseek_v2", "deepseek_v3", "llama4_text", "ministral"}
STORED: dict[str, list[dict[str, Any]]] = {
    "llama": [{"rope_parameters": LLAMA3}, {"attention_bias": True, "mlp_bias": True, "rope_parameters": YARN}],
    "mistral": [{"sliding_window": None, "head_dim": 24, "tie_word_embeddings": True}],
    "mixtral": [{"sliding_window": None, "num_local_experts": 6, "num_experts_per_tok": 3}],
    "qwen2": [{}, {"tie_word_embeddings": True, "rope_parameters": YARN}],
    "qwen2_moe": [EXPERTS | {"shared_expert_intermediate_size": 48}, EXPERTS | {"qkv_bias": False}],
    "qwen3": [{"head_dim": 32}, {"head_dim": 24, "tie_word_embeddings": True, "rope_parameters": YARN}],
    "qwen3_moe": [EXPERTS | {"norm_topk_prob": True, "head_dim": 24, "tie_word_embeddings": True}],
    "smollm3": [{}, {"head_dim": 24, "tie_word_embeddings": False, "num_hidden_layers": 5, "rope_parameters": YARN}],
    "granite": [
        MULTIPLIERS | {"tie_word_embeddings": True},
        MULTIPLIERS | {"attention_bias": True, "mlp_bias": True, "rope_parameters": YARN},
    ],
    "olmo2": [{"num_key_value_heads": 4}, {"rope_parameters": YARN}],
    "olmo3": [
        {"sliding_window": 5, "rope_parameters": {FULL: YARN, SLIDING: {"rope_theta": 1e4}}},
        {"sliding_window": 9, "layer_types": [FULL, SLIDING, SLIDING, FULL]},
    ],
    "seed_oss": [{"head_dim": 24}, {"attention_bias": False, "tie_word_embeddings": True, "rope_parameters": YARN}],
    "phi3": [
        {"sliding_window": 17, "tie_word_embeddings": True},
        PHI | {"partial_rotary_factor": 0.75, "rope_parameters": LONGROPE},
    ],
    "gemma": [{"head_dim": 24}],
    "gemma2": [
        CAPPED | {"sliding_window": 5},
        DEEP | CAPPED | {"num_hidden_layers": 46, "query_pre_attn_scalar": 8},
    ],
    "gemma3_text": [
        GEMMA_3 | {"num_hidden_layers": 7, "rope_parameters": {FULL: LINEAR, SLIDING: {"rope_theta": 500.0}}},
        GEMMA_3 | {"tie_word_embeddings": False, "final_logit_softcapping": 1.5},
    ],
    "cohere": [{"logit_scale": 0.3}, DEEP | {"num_hidden_layers": 64, "use_qk_norm": True}],
    "cohere2": [{"sliding_window": 5, "num_hidden_layers": 6, "rotary_pct": 1.0}],  # the converter wants the last one
    "stablelm": [
        {"use_qkv_bias": True, "partial_rotary_factor": 1.0},
        {"use_parallel_residual": True, "qk_layernorm": True},
    ],
}
"""Fields beyond `cases.SHAPE` of configs that llama.cpp computes."""
REFUSED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "mistral": [({"sliding_window": 5}, "sliding_window")],
    "qwen2": [
        ({"head_dim": 24}, "key_length"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "sliding_window"),
    ],
    "qwen2_moe": [(EXPERTS | {"mlp_only_layers": [1], "norm_topk_prob": True}, "decoder_sparse_step, norm_topk_prob")],
    "qwen3": [
        ({"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, "sliding_window"),
        ({"attention_bias": True}, "attention_bias"),
    ],
    "qwen3_moe": [(EXPERTS, "norm_topk_prob")],
    "smollm3": [({"no_rope_layer_interval": 2}, "no_rope_layers"), ({"rope_parameters": LLAMA3}, "llama3")],
    "granite": [({"head_dim": 24}, "key_length"), ({"rope_parameters": LLAMA3}, "llama3")],
    "olmo2": [({"tie_word_embeddings": True}, "tie_word_embeddings")],
    "olmo3": [({"rope_parameters": {FULL: YARN, SLIDING: {"rope_theta": 1e3}}}, "freq_base_swa")],
    "seed_oss": [({"attention_out_bias": True}, "attention_out_bias")],
    "gemma": [({"tie_word_embeddings": False, "attention_bias": True}, "attention_bias, tie_word_embeddings")],
    "gemma2": [(CAPPED | {"query_pre_attn_scalar": 9, "final_logit_softcapping": None}, "query_pre_attn_scalar")],
    "gemma3_text": [(GEMMA_3 | {"layer_types": [SLIDING, FULL, FULL, SLIDING]}, "sliding_window")],
    "cohere": [({"use_qk_norm": True}, "use_qk_norm")],
    "cohere2": [({"layer_types": [SLIDING, FULL, FULL, SLIDING]}, "sliding_window")],
    "stablelm": [({"tie_word_embeddings": True}, "tie_word_embeddings")],
}
"""Fields of configs that llama.cpp does not compute, and what the error names."""


def flat(cases: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, case, id=f"{name}-{number}")
        for name, of_family in cases.items()
        for number, case in enumerate(of_family)
    ]


linux = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the llama.cpp of PyPI is for Linux x86-64"
)


def build(name: str, fields: dict[str, Any], folder: Path) -> tuple[LlamaForCausalLM, Any]:
    """Return our model and transformers', of which ours was loaded."""
    config = transformers.AutoConfig.for_model(name, **(SHAPE | fields))
    torch.manual_seed(1)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    perturb_vectors(theirs)
    theirs.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, device="cpu"), theirs


@pytest.fixture(params=[case.values for case in flat(STORED)], ids=[case.id for case in flat(STORED)])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LlamaForCausalLM, Any]:
    return build(*request.param, tmp_path / "theirs")


def test_every_family_that_is_stored_is_tested() -> None:
    assert set(STORED) == {name for name, family in FAMILIES.items() if family.gguf}
    assert {name for name, family in FAMILIES.items() if not family.gguf} == NOT_WRITTEN


def test_a_model_round_trips(pair: tuple[LlamaForCausalLM, Any], tmp_path: Path) -> None:
    ours, theirs = pair
    save_gguf(ours, tmp_path / "m.gguf", tokenizer=TOKENIZER)
    again = LlamaForCausalLM.from_pretrained(tmp_path / "m.gguf", device="cpu")
    absent: dict[str, Any] = {"initializer_range": 0.02, "dtype": None, "eos_token_id": None}
    if ours.config.model_type == "mistral":
        absent["model_type"] = "llama"  # llama.cpp's name of both
    if ours.config.rope["rope_type"] == "longrope":  # of the factor the file holds what follows from it
        absent |= {"rope_parameters": {"rope_type": "default"}}
    assert again.config.replace(**absent) == ours.config.replace(**absent)
    ids = ids_of(2, 60)
    assert_close(again(ids).logits, ours(ids).logits, atol=1e-5, rtol=0)
    assert_close(again(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "fields"), [("mistral", {"sliding_window": None}), ("qwen3", {"head_dim": 128})])
def test_transformers_reads_what_we_write(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    # It reads no other architecture right, and of Qwen 3 only this width of heads.
    ours, _ = build(name, fields, tmp_path / "theirs")
    save_gguf(ours, tmp_path / "m.gguf", tokenizer=TOKENIZER)
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ids = ids_of(2, 50)
    assert_close(read(ids).logits, ours(ids).logits, atol=1e-4, rtol=0)


PUBLISHED = [
    pytest.param(name, fields, id=model)
    for name, family in MODEL_FAMILIES.items()
    for model, (fields, _) in family.published.items()
    if FAMILIES[name].gguf
]


@pytest.mark.parametrize(("name", "fields"), PUBLISHED)
def test_llama_cpp_computes_the_published_configs(name: str, fields: dict[str, Any]) -> None:
    config = LlamaConfig.from_dict(fields | {"model_type": name})
    metadata, tensors = content_of(LlamaForCausalLM(config, device="meta"))
    assert metadata and tensors


@pytest.mark.parametrize(("name", "case"), flat(REFUSED))
def test_a_config_that_llama_cpp_does_not_compute_is_refused(
    name: str, case: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    ours, _ = build(name, case[0], tmp_path / "theirs")
    with pytest.raises(ValueError, match=rf"cannot express this config: .*{case[1]}"):
        save_gguf(ours, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def run(*arguments: str) -> str:
    """Return what a Python process of its own prints."""
    done = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@linux
def test_llama_cpp_has_the_same_probabilities(
    pair: tuple[LlamaForCausalLM, Any], real: Callable[..., Any], tmp_path: Path
) -> None:
    real(data.llama_cpp)
    ours, _ = pair
    save_gguf(ours, tmp_path / "m.gguf", tokenizer=TOKENIZER)
    config = ours.config
    lengths: Sequence[int] = (3, 17, 60)
    if config.rope["rope_type"] == "longrope":  # a context longer than the original makes llama.cpp take long factors
        lengths = [length for length in lengths if length > config.rope["original_max_position_embeddings"]]
    if config.model_type == "phi3":  # its window is in the file, and llama.cpp does not compute it
        lengths = [length for length in lengths if length <= (config.sliding_window or length)]
    assert lengths
    prompts = [ids_of(1, length)[0].tolist() for length in lengths]
    with LlamaCpp(tmp_path / "m.gguf", exact=True) as llama_cpp:
        answers = [llama_cpp.complete(prompt, 1, n_probs=4096, ignore_eos=True) for prompt in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        chosen = {one["id"]: one["logprob"] for one in answer["completion_probabilities"][0]["top_logprobs"]}
        row = [chosen[token] for token in sorted(chosen)]
        expected = ours(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        # llama.cpp looks the GELU of Gemma up in a table of float16.
        tolerance = 1e-2 if config.hidden_act != "silu" else 1e-4
        assert_close(torch.tensor(row), expected, atol=tolerance, rtol=0)


CONVERTER = """
import json, sys
from pathlib import Path
root, source, target, tokenizer = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
sys.path[:0] = [root, root + "/gguf-py"]
import conversion, gguf
from conversion.base import ModelBase, ModelType, get_model_architecture
tokens = {token: number for number, token in enumerate(tokenizer["tokenizer.ggml.tokens"])}
(source / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}, "added_tokens": []}))
architecture = get_model_architecture(ModelBase.load_hparams(source, False), ModelType.TEXT)
converter = conversion.get_model_class(architecture)(source, gguf.LlamaFileType.ALL_F32, target, eager=True)
converter = getattr(converter, "impl", converter)
converter.set_vocab = lambda: converter.gguf_writer.add_tokenizer_model("none")
converter.write()
"""


@pytest.mark.slow
@linux
def test_the_converters_file_is_read_and_equals_ours(
    pair: tuple[LlamaForCausalLM, Any], real: Callable[..., Any], tmp_path: Path
) -> None:
    ours, _ = pair
    if getattr(ours.config, "qk_layernorm", False):
        pytest.skip("the converter stops at StableLM's norms of queries and keys, which llama.cpp itself reads")
    folder = real(data.llama_cpp_converter)
    run(CONVERTER, str(folder), str(tmp_path / "theirs"), str(tmp_path / "t.gguf"), json.dumps(TOKENIZER))
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "t.gguf", device="cpu", dtype="float32")
    ids = ids_of(2, 60)
    assert_close(loaded(ids).logits, ours(ids).logits, atol=1e-5, rtol=0)
    save_gguf(ours, tmp_path / "m.gguf")
    expected, found = gguf.GGUFReader(tmp_path / "t.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
    architecture = expected.fields["general.architecture"].contents()
    for key, stated in expected.fields.items():
        if key.startswith(f"{architecture}."):
            assert found.fields[key].contents() == stated.contents(), key
            assert found.fields[key].types == stated.types, key
    tensors = {tensor.name: tensor for tensor in found.tensors}
    assert tensors.keys() == {tensor.name for tensor in expected.tensors}
    for tensor in expected.tensors:
        other = tensors[tensor.name]
        assert (other.tensor_type, other.shape.tolist()) == (tensor.tensor_type, tensor.shape.tolist()), tensor.name
        rounding = 1e-6 if tensor.name.startswith("rope_") else 0
        np.testing.assert_allclose(other.data, tensor.data, rtol=rounding, err_msg=tensor.name)
