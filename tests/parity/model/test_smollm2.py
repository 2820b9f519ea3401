"""Real weights: SmolLM2-135M-Instruct as dequantised from its GGUF file, by us and by transformers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from bench import data
from bpe_llama import Tokenizer
from bpe_llama.model import LlamaForCausalLM, TextGenerator, perplexity
from bpe_llama.model.cli.chat import Conversation

transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers installed")

pytestmark = pytest.mark.slow

PROMPTS = [
    "Once upon a time",
    "def fibonacci(n):",
    "The capital of France is",
    "Water boils when",
    "In 1969, the first people",
    "Dear Sir or Madam,",
    "import numpy as np\n",
    "The three laws of motion are",
    "To bake bread you need",
    "Q: What is 12 times 12?\nA:",
    "<html>\n<head>",
    "Die Hauptstadt von Deutschland ist",
    "She opened the door and",
    "A prime number is",
    "The mitochondria",
    "SELECT name FROM users WHERE",
    "Roses are red,",
    "The stock market fell because",
    "1, 1, 2, 3, 5, 8,",
    "日本の首都は",
]
FULL = os.environ.get("BPE_LLAMA_FULL") == "1"  # as `make parity` sets it
PROSE_BYTES = 100_000 if FULL else 3_000  # two windows


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def ours(real: Callable[..., Any]) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(real(data.smollm2_gguf), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def tokenizer(real: Callable[..., Any]) -> Tokenizer:
    return Tokenizer.from_gguf(real(data.smollm2_gguf))


@pytest.fixture(scope="module")
def theirs(ours: LlamaForCausalLM) -> Any:
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(ours.config.to_dict())).eval()
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # no weight, so it was not yet made
    model.load_state_dict(ours.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = None
    return model


def test_logits_and_greedy_text(ours: LlamaForCausalLM, theirs: Any, tokenizer: Tokenizer) -> None:
    generator = TextGenerator(ours, tokenizer)
    for prompt in PROMPTS[:2]:
        ids = torch.tensor([tokenizer.encode(prompt)])
        options = {"max_new_tokens": 24, "temperature": 0.0, "eos_id": ()}
        expected = theirs.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert torch.equal(ours.generate(ids, **options), expected)
        assert_close(ours(expected).logits, theirs(expected).logits, atol=1e-4, rtol=0)
        assert generator.generate(prompt, **options) == tokenizer.decode(expected[0, ids.shape[1] :].tolist())


def test_greedy_text_of_a_hundred_tokens(ours: LlamaForCausalLM, theirs: Any, tokenizer: Tokenizer) -> None:
    """Each of our tokens is the one transformers finds likeliest after those before it, so its greedy text is ours."""
    prompts = [tokenizer.encode(prompt) for prompt in (PROMPTS if FULL else PROMPTS[::3])]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    texts = ours.generate(ids, mask, max_new_tokens=100, temperature=0.0, eos_id=())
    for prompt, row in zip(prompts, texts, strict=True):
        text = row[width - len(prompt) :]
        likeliest = theirs(text[None, :-1]).logits[0, len(prompt) - 1 :].argmax(-1)
        assert torch.equal(text[len(prompt) :], likeliest), tokenizer.decode(prompt)


def test_perplexity_of_prose(
    real: Callable[..., Any], ours: LlamaForCausalLM, theirs: Any, tokenizer: Tokenizer
) -> None:
    prose = real(data.corpus, "prose", megabytes=2).read_bytes()[:PROSE_BYTES].decode(errors="ignore")
    ids = torch.tensor(tokenizer.encode(prose))
    total = 0.0
    for begin in range(0, len(ids) - 1, 511):
        window = ids[begin : begin + 512]
        scores = theirs(window[None, :-1]).logits[0].double().log_softmax(-1)
        total -= scores.gather(1, window[1:, None]).sum().item()
    expected = math.exp(total / (len(ids) - 1))
    found = perplexity(ours, ids, window=512)
    print(f"perplexity of {PROSE_BYTES:,} bytes of prose: {found:.5f}, transformers {expected:.5f}")
    assert found == pytest.approx(expected, rel=5e-5)
    assert 5 < found < 50  # it is text, and the model knows the language


def test_a_chat_turn_answers(ours: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    options = {"max_new_tokens": 60, "temperature": 0.0}
    conversation = Conversation(TextGenerator(ours, tokenizer), options=options)
    assert "Paris" in "".join(conversation.answer("What is the capital of France?"))
    assert "Rome" in "".join(conversation.answer("And what is the capital of Italy?"))
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2
