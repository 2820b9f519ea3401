"""SmolLM2-135M-Instruct, real weights from its GGUF file: the same numbers and the same text as transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import data
from bpe_llama import Tokenizer
from bpe_llama.model import LlamaForCausalLM, TextGenerator

transformers = pytest.importorskip("transformers", reason="transformers is the reference")

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a small village by the sea,",
    "Water boils at",
]


@pytest.fixture(scope="module")
def gguf_file(real: Callable[..., Any]) -> Path:
    path: Path = real(data.smollm2_gguf)
    return path


@pytest.fixture(scope="module")
def ours(gguf_file: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(gguf_file, device="cpu")


@pytest.fixture(scope="module")
def theirs(ours: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The dequantised weights, saved by us and loaded by transformers."""
    folder = tmp_path_factory.mktemp("smollm2")
    ours.save_pretrained(folder)
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(gguf_file: Path) -> Tokenizer:
    return Tokenizer.from_gguf(gguf_file)


def test_the_config_is_smollm2s(ours: LlamaForCausalLM) -> None:
    config = ours.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.kv_heads, config.head_size) == (30, 9, 3, 64)
    assert (config.vocab_size, config.tie_word_embeddings, config.rope["rope_theta"]) == (49_152, True, 100_000.0)
    assert sum(weight.numel() for weight in ours.parameters()) == 134_515_008


@torch.no_grad()
def test_logits_agree(ours: LlamaForCausalLM, theirs: Any, tokenizer: Tokenizer) -> None:
    ids = torch.tensor([tokenizer.encode(" ".join(PROMPTS))])
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_greedy_text_agrees(ours: LlamaForCausalLM, theirs: Any, tokenizer: Tokenizer) -> None:
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt)])
        expected = theirs.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=2)
        assert ours.generate(ids, max_new_tokens=24, temperature=0).tolist() == expected.tolist(), prompt


@torch.no_grad()
def test_it_writes_english(ours: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    assert "Paris" in TextGenerator(ours, tokenizer).generate(PROMPTS[0], max_new_tokens=8, temperature=0)
