"""Beam search against transformers: random weights with every setting, and SmolLM2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import data
from bpe_llama import Tokenizer
from bpe_llama.model import LlamaForCausalLM, TextGenerator
from tests.small_models import tiny_model

transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers installed")
pytestmark = pytest.mark.usefixtures("one_thread")


def twin(model: LlamaForCausalLM) -> Any:
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(model.config.to_dict())).eval()
    theirs.load_state_dict(model.state_dict())
    return theirs


@pytest.fixture(scope="module")
def pair() -> tuple[LlamaForCausalLM, Any]:
    shape = {"vocab_size": 61, "num_key_value_heads": 2, "initializer_range": 0.15, "eos_token_id": None}
    model = tiny_model(seed=3, **shape, pad_token_id=60)  # they take 0 for no padding id at all
    return model, twin(model)


@torch.no_grad()
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -0.7, 2.5])
def test_random_weights(pair: tuple[LlamaForCausalLM, Any], length_penalty: float, early_stopping: bool | str) -> None:
    ours, theirs = pair
    num_beams = 5 if length_penalty == 1 else 3
    generator = torch.Generator().manual_seed(num_beams)
    ids = torch.randint(1, 61, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    search = {"num_beams": num_beams, "length_penalty": length_penalty, "early_stopping": early_stopping}
    for eos, least in (([], 0), ([7], 0), ([3, 9, 20, 33], 0), ([3, 9, 20, 33], 4)):
        expected = theirs.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=10,
            min_new_tokens=least or None,
            eos_token_id=eos or None,
            pad_token_id=60,
            do_sample=False,
            num_return_sequences=2,
            **search,
        )
        found = ours.generate(
            ids, mask, max_new_tokens=10, min_new_tokens=least, eos_id=tuple(eos), num_return_sequences=2, **search
        )
        assert found.tolist() == expected.tolist()


@torch.no_grad()
@pytest.mark.parametrize("stop", [["o"], ["ca", "do"], ["aba", "dd"]])
def test_stop_strings(stop: list[str]) -> None:
    tokenizer = Tokenizer.train_from_iterator(["abacad abba do doca ad " * 9], vocab_size=268, progress=False)
    ours = tiny_model(seed=4, vocab_size=tokenizer.vocab_size, eos_token_id=None, initializer_range=0.15)
    generator, theirs = TextGenerator(ours, tokenizer), twin(ours)
    letters = [*range(256, 268), *tokenizer.encode("abcdo ")]
    options = {"max_new_tokens": 20, "num_beams": 4, "length_penalty": 0.5}
    ended = 0
    for prompt in ([place, *tokenizer.encode(" ")] for place in letters):  # theirs may match in a prompt
        banned = [token_id for token_id in range(256) if token_id not in letters]
        expected = theirs.generate(
            torch.tensor([prompt]),
            stop_strings=stop,
            tokenizer=tokenizer.as_transformers(),
            suppress_tokens=banned,
            pad_token_id=0,
            do_sample=False,
            num_return_sequences=3,
            **options,
        )
        generator.generate(prompt, n=3, stop=stop, banned_ids=banned, **options)
        found = [sequence.new_ids for sequence in generator.sequences]
        assert found == [row[2 : 2 + len(ids)] for row, ids in zip(expected.tolist(), found, strict=True)]
        assert not expected[:, 2 + max(map(len, found)) :].any()
        ended += sum(sequence.finish_reason == "stop" for sequence in generator.sequences)
    assert ended > 20


@pytest.mark.slow
@torch.no_grad()
def test_smollm2(real: Callable[..., Any]) -> None:
    path = real(data.smollm2_gguf)
    ours = LlamaForCausalLM.from_pretrained(path, dtype="float32", device="cpu")
    theirs, tokenizer = twin(ours), Tokenizer.from_gguf(path)
    for prompt in ("The capital of France is", "def fibonacci(n):"):
        ids = torch.tensor([tokenizer.encode(prompt)])
        options = {"max_new_tokens": 16, "num_beams": 3}
        expected = theirs.generate(ids, do_sample=False, pad_token_id=0, **options)
        assert ours.generate(ids, **options).tolist() == expected.tolist()
