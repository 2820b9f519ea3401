"""Real weights: SmolLM2-135M-Instruct as dequantised from its GGUF file, by us and by transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from bench import data
from bpe_llama import Tokenizer
from bpe_llama.model import LlamaForCausalLM, TextGenerator

transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers installed")

PROMPTS = ["Once upon a time", "def fibonacci(n):"]


@pytest.mark.slow
@torch.no_grad()
def test_logits_and_greedy_text(real: Callable[..., Any]) -> None:
    path = real(data.smollm2_gguf)
    ours = LlamaForCausalLM.from_pretrained(path, dtype="float32", device="cpu")
    tokenizer = Tokenizer.from_gguf(path)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(ours.config.to_dict())).eval()
    theirs.load_state_dict(ours.state_dict())
    theirs.generation_config.eos_token_id = None
    generator = TextGenerator(ours, tokenizer)
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt)])
        options = {"max_new_tokens": 24, "temperature": 0.0, "eos_id": ()}
        expected = theirs.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert torch.equal(ours.generate(ids, **options), expected)
        assert_close(ours(expected).logits, theirs(expected).logits, atol=1e-4, rtol=0)
        assert generator.generate(prompt, **options) == tokenizer.decode(expected[0, ids.shape[1] :].tolist())
