"""llama.cpp runs the GGUF files that we write and generates the same greedy text."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import data
from bpe_llama import Tokenizer
from bpe_llama._gguf.writer import tokenizer_metadata
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, TextGenerator, training
from bpe_llama.model.checkpoints.gguf_write import save_gguf
from tests.small_models import small_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the llama.cpp of PyPI is for Linux x86-64"
    ),
]
CHILD = """
import json, pathlib, sys
folder, path, prompts, count = sys.argv[1], pathlib.Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
sys.path.insert(0, folder)
from gpt4all import GPT4All
model = GPT4All(path.name, model_path=path.parent, allow_download=False, device="cpu", n_threads=1, n_ctx=256)
options = {"max_tokens": count, "temp": 0.0, "top_k": 1, "repeat_penalty": 1.0, "n_batch": 32}
print("\\n" + json.dumps([model.generate(prompt, **options) for prompt in prompts]))
"""


def by_llama_cpp(folder: Path, path: Path, prompts: list[str], count: int) -> list[str]:
    """Return its greedy continuations, made in a process of its own."""
    child = [sys.executable, "-c", CHILD, str(folder), str(path), json.dumps(prompts), str(count)]
    done = subprocess.run(child, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    texts: list[str] = json.loads(done.stdout.splitlines()[-1])
    return texts


def test_real_weights(real: Callable[..., Any], tmp_path: Path) -> None:
    folder, source = real(data.llama_cpp), real(data.smollm2_gguf)
    tokenizer = Tokenizer.from_gguf(source)
    path = tmp_path / "m.gguf"
    # This llama.cpp is older than the name smollm; falcon's pattern cuts such prompts in the same way.
    metadata = tokenizer_metadata(tokenizer) | {"tokenizer.ggml.pre": "falcon"}
    save_gguf(LlamaForCausalLM.from_pretrained(source, device="cpu"), path, dtype="float16", tokenizer=metadata)
    prompts = ["Once upon a time", "The capital of France is", "def fibonacci(n):"]
    generator = TextGenerator(LlamaForCausalLM.from_pretrained(path, dtype="float32", device="cpu"), tokenizer)
    ours = [generator.generate(prompt, max_new_tokens=40, temperature=0.0) for prompt in prompts]
    assert "Paris" in ours[1]
    assert by_llama_cpp(folder, path, prompts, 40) == ours


@torch.no_grad()
def test_a_grown_vocabulary(real: Callable[..., Any], tmp_path: Path) -> None:
    folder = real(data.llama_cpp)
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
    ours = [TextGenerator(model, grown).generate(prompt, max_new_tokens=12, temperature=0.0) for prompt in prompts]
    assert all(text and text.isascii() for text in ours)
    assert by_llama_cpp(folder, path, prompts, 12) == ours


@torch.no_grad()
def test_a_mixture_of_experts(real: Callable[..., Any], tmp_path: Path) -> None:
    folder = real(data.llama_cpp)
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
    # Not many: it caches keys and values in float16, and random weights leave the likeliest token little ahead.
    ours = [generator.generate(prompt, max_new_tokens=16, temperature=0.0) for prompt in prompts]
    assert ours[0] != ours[1] and all(text.isascii() for text in ours)
    assert by_llama_cpp(folder, path, prompts, 16) == ours
