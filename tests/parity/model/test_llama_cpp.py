"""llama.cpp runs the GGUF files that we write and generates the same greedy text."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import data
from bench.llama_cpp import LlamaCpp
from bpe_llama import Tokenizer
from bpe_llama._gguf.writer import tokenizer_metadata
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, TextGenerator, training
from bpe_llama.model.checkpoints.gguf_write import save_gguf
from tests.small_models import small_model
from tests.unit.loading.gguf_metadata import byte_level, read, sentencepiece

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the llama.cpp of PyPI is for Linux x86-64"
    ),
]


def by_llama_cpp(path: Path, prompts: list[str], count: int) -> list[str]:
    """Return its greedy continuations."""
    with LlamaCpp(path, exact=True) as llama_cpp:
        return [llama_cpp.complete(prompt, count)["content"] for prompt in prompts]


def test_real_weights(real: Callable[..., Any], tmp_path: Path) -> None:
    real(data.llama_cpp)
    source = real(data.smollm2_gguf)
    tokenizer = Tokenizer.from_gguf(source)
    path = tmp_path / "m.gguf"
    model = LlamaForCausalLM.from_pretrained(source, device="cpu")
    save_gguf(model, path, dtype="float16", tokenizer=tokenizer_metadata(tokenizer))
    prompts = ["Once upon a time", "The capital of France is", "def fibonacci(n):"]
    generator = TextGenerator(LlamaForCausalLM.from_pretrained(path, dtype="float32", device="cpu"), tokenizer)
    ours = [generator.generate(prompt, max_new_tokens=40, temperature=0.0) for prompt in prompts]
    assert "Paris" in ours[1]
    assert by_llama_cpp(path, prompts, 40) == ours


@torch.no_grad()
def test_a_grown_vocabulary(real: Callable[..., Any], tmp_path: Path) -> None:
    real(data.llama_cpp)
    texts = ["The quick brown fox jumps over the lazy dog. ", "Pack my box with five dozen liquor jugs. "]
    tokenizer = Tokenizer.train_from_iterator(
        [texts[0] * 3], vocab_size=280, pattern="r50k", special_tokens=["<|endoftext|>"], progress=False
    )
    grown = Tokenizer.train_from_iterator([texts[1] * 3], vocab_size=300, base=tokenizer, progress=False)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=280, initializer_range=0.2, bos_token_id=None, eos_token_id=279, **shape)
    model = LlamaForCausalLM(config, seed=1).eval()
    model.resize_token_embeddings(300, pieces=training.token_pieces(tokenizer, grown))
    for token in range(280):  # only say what is new
        model.lm_head.weight[token] = 0
    path = tmp_path / "m.gguf"
    save_gguf(model, path, dtype="float32", tokenizer=tokenizer_metadata(grown))
    prompts = ["Pack my box", "five dozen"]
    # Not many: where all new tokens have scores below 0 the old ones are equally likely.
    ours = [TextGenerator(model, grown).generate(prompt, max_new_tokens=8, temperature=0.0) for prompt in prompts]
    assert all(text and text.isascii() for text in ours)
    assert by_llama_cpp(path, prompts, 8) == ours


@torch.no_grad()
def test_a_mixture_of_experts(real: Callable[..., Any], tmp_path: Path) -> None:
    real(data.llama_cpp)
    text = "The quick brown fox jumps over the lazy dog while five wizards box quietly. " * 3
    tokenizer = Tokenizer.train_from_iterator(
        [text], vocab_size=300, pattern="r50k", special_tokens=["<|endoftext|>"], progress=False
    )
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = small_model(vocab_size=300, bos_token_id=None, eos_token_id=299, **experts)
    for token in range(300):  # never say what is no ASCII text, nor the end: a score of 0 is seldom the highest
        if token == 299 or not all(32 <= byte < 127 for byte in tokenizer.id_to_bytes(token)):
            model.lm_head.weight[token] = 0
    path = tmp_path / "m.gguf"
    save_gguf(model, path, dtype="float32", tokenizer=tokenizer_metadata(tokenizer))
    prompts = ["The quick", "wizards box"]
    generator = TextGenerator(model, tokenizer)
    # Not many: random weights leave the likeliest token little ahead.
    ours = [generator.generate(prompt, max_new_tokens=16, temperature=0.0) for prompt in prompts]
    assert ours[0] != ours[1] and all(text.isascii() for text in ours)
    assert by_llama_cpp(path, prompts, 16) == ours


@pytest.mark.parametrize("metadata", [byte_level(), sentencepiece()], ids=["gpt2", "llama"])
def test_an_embedding_of_more_rows_than_tokens(
    real: Callable[..., Any], metadata: dict[str, Any], tmp_path: Path
) -> None:
    real(data.llama_cpp)
    model, path, prompt = small_model(vocab_size=320), tmp_path / "m.gguf", "ab some a"
    save_gguf(model, path, dtype="float32", tokenizer=metadata)
    tokenizer, padded = read(tmp_path, metadata).core, Tokenizer.from_gguf(path)
    assert padded.encode(prompt + "[PAD300]") == tokenizer.encode(prompt + "[PAD300]")
    assert (padded.vocab_size, padded.merges) == (tokenizer.vocab_size, tokenizer.merges)
    ids = padded(prompt)["input_ids"]
    ours = model.generate(torch.tensor([ids]), max_new_tokens=8, temperature=0.0, eos_id=())[0, len(ids) :]
    with LlamaCpp(path, exact=True) as llama_cpp:
        assert llama_cpp.complete(prompt, 8, ignore_eos=True, return_tokens=True)["tokens"] == ours.tolist()
