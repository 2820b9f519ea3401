"""GGUF files that we write: read by the gguf package and by us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama._gguf.writer import tokenizer_metadata
from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.checkpoints.assemble import expected_shapes
from bpe_llama.model.checkpoints.gguf import load_gguf
from bpe_llama.model.checkpoints.gguf_write import FORMATS, save_gguf
from tests.model.checkpoints.gguf_models import CONFIG, permuted

gguf = pytest.importorskip("gguf", reason="the gguf package writes the files read here")


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "q8_0", "q4_0"])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "attention_bias": True}])
def test_the_package_reads_what_we_write(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    model = LlamaForCausalLM(CONFIG.replace(**changes), seed=5)
    path = tmp_path / "out.gguf"
    save_gguf(model, path, dtype=name)
    assert [file.name for file in tmp_path.iterdir()] == ["out.gguf"]
    reader = gguf.GGUFReader(path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    assert reader.fields["llama.block_count"].contents() == 2
    assert len(stored) == len(expected_shapes(model.config))
    heads = {"q_proj": 4, "k_proj": 2}
    weight = model.state_dict()["model.layers.1.self_attn.k_proj.weight"].numpy()
    kind = gguf.GGMLQuantizationType[FORMATS[name]]
    assert stored["blk.1.attn_k.weight"].tensor_type == kind
    assert stored["blk.1.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    np.testing.assert_array_equal(
        gguf.quants.dequantize(stored["blk.1.attn_k.weight"].data, kind),
        gguf.quants.dequantize(gguf.quants.quantize(permuted(weight, heads["k_proj"]), kind), kind),
    )

    loaded = load_gguf(path, device="cpu", dtype="float32")
    assert loaded.config.replace(dtype=None) == model.config.replace(dtype=None)
    worst = {"float32": 0, "float16": 1e-4, "bfloat16": 1e-3, "q8_0": 1e-3, "q4_0": 1e-2}[name]
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], tensor, atol=worst, rtol=0)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("name", ["float32", "q8_0"])
def test_a_mixture_of_experts_round_trips(tmp_path: Path, name: str, biases: bool) -> None:
    config = CONFIG.replace(num_local_experts=3, num_experts_per_tok=2, attention_bias=biases)
    model = LlamaForCausalLM(config, seed=5).eval()
    path = tmp_path / "out.gguf"
    save_gguf(model, path, dtype=name)
    reader = gguf.GGUFReader(path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    counts = [reader.fields[f"llama.expert_{kind}"].contents() for kind in ("count", "used_count")]
    assert counts == [3, 2]
    assert stored["blk.1.ffn_gate_inp.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    for part, ours in (("ffn_gate_exps", "w1"), ("ffn_up_exps", "w3"), ("ffn_down_exps", "w2")):
        tensor = stored[f"blk.1.{part}.weight"]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        experts = [model.state_dict()[f"model.layers.1.block_sparse_moe.experts.{e}.{ours}.weight"] for e in range(3)]
        np.testing.assert_allclose(values, torch.stack(experts).numpy(), atol=0 if name == "float32" else 1e-3)
    loaded = LlamaForCausalLM.from_pretrained(path, device="cpu", dtype="float32")
    assert loaded.config.replace(dtype=None) == model.config.replace(dtype=None)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], tensor, atol=0 if name == "float32" else 1e-3, rtol=0)
    if name == "float32":
        ids = torch.arange(20)[None]
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_rope_scaling_round_trips(tmp_path: Path) -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for scaling in (
        {**llama3, "original_max_position_embeddings": 8192},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
    ):
        model = LlamaForCausalLM(CONFIG.replace(rope_scaling=scaling))
        save_gguf(model, tmp_path / "m.gguf")
        assert load_gguf(tmp_path / "m.gguf", device="cpu").config.rope_scaling == scaling


def test_a_model_gguf_cannot_express_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot express this config: sliding_window"):
        save_gguf(LlamaForCausalLM(CONFIG.replace(sliding_window=8)), tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="dtype is 'q2_0'; expected auto, float32"):
        save_gguf(LlamaForCausalLM(CONFIG), tmp_path / "m.gguf", dtype="q2_0")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pattern", ["r50k", "llama3", "qwen2", "smollm", "deepseek_v3"])
def test_a_tokenizer_round_trips(tmp_path: Path, pattern: str) -> None:
    text = "Some words, some more words; 12345 numbers of another 678.\n\tAnd   spaces — naïve 語, she said."
    tokenizer = Tokenizer.train_from_iterator(
        [text] * 3, vocab_size=300, pattern=pattern, special_tokens=["<|endoftext|>"], progress=False
    )
    model = LlamaForCausalLM(CONFIG.replace(vocab_size=300))
    save_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer_metadata(tokenizer, chat_template="{{ messages }}"))
    loaded = Tokenizer.from_file(tmp_path / "m.gguf")
    assert loaded.encode(text) == tokenizer.encode(text)
    assert (loaded.special_tokens, loaded.eos_id) == (tokenizer.special_tokens, tokenizer.eos_id)
    assert loaded.chat_template == "{{ messages }}"


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train_from_iterator(["abab"], vocab_size=257, pattern="r50k", progress=False)
    with pytest.raises(ValueError, match="the tokenizer has 257 tokens; expected at most the model's 256"):
        save_gguf(
            LlamaForCausalLM(CONFIG.replace(vocab_size=256)),
            tmp_path / "m.gguf",
            tokenizer=tokenizer_metadata(tokenizer),
        )


def test_a_tokenizer_of_another_pattern_is_refused() -> None:
    tokenizer = Tokenizer.train_from_iterator(["abab"], vocab_size=257, pattern=r"\w+|\W+", progress=False)
    with pytest.raises(ValueError, match=r"llama\.cpp has no name for the pattern"):
        tokenizer_metadata(tokenizer)
