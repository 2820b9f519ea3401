"""Text in, text out: streaming, stop strings, batches, and text that pretends to be a special token."""

from __future__ import annotations

import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, TextGenerator

SPECIAL = {"<|begin_of_text|>": 256, "<|end_of_text|>": 257}


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    """Return a random model over bytes: it writes broken UTF-8, the hardest case for a stream."""
    tokenizer = Tokenizer.from_ranks({bytes([i]): i for i in range(256)}, pattern="cl100k", special_tokens=SPECIAL)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.2,
        eos_token_id=257,
    )
    return TextGenerator(LlamaForCausalLM(config, seed=2).eval(), tokenizer)


def ids_after(generator: TextGenerator, prompt: str, **options: object) -> list[int]:
    ids = torch.tensor([generator.tokenizer.encode(prompt)])
    return generator.model.generate(ids, **options)[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_the_stream_is_the_decoded_continuation(generator: TextGenerator, seed: int) -> None:
    options = {"max_new_tokens": 60, "temperature": 1.0, "seed": seed}
    pieces = list(generator.stream("Once upon", **options))
    ids = [i for i in ids_after(generator, "Once upon", **options) if i != 257]
    assert "".join(pieces) == bytes(ids).decode("utf-8", errors="replace")
    assert all(pieces) and len(pieces) > 1
    assert generator.generate("Once upon", **options) == "".join(pieces)


def test_a_character_in_several_tokens_comes_whole(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [*"né – 日本 🦙!".encode(), 257]

    def scripted(samples: list[object], logits: torch.Tensor) -> list[int]:
        return [script[len(sample.new_ids)] for sample in samples]  # type: ignore[attr-defined]

    monkeypatch.setattr("bpe_llama.model.generation.choose", scripted)
    assert list(generator.stream("x")) == list("né – 日本 🦙!")
    assert list(generator.stream("x", stop="本 🦙")) == list("né – 日")
    assert list(generator.stream("x", stop=["本 🐫", " –", "é –"])) == ["n"]
    assert "".join(generator.stream("x", stop="🦙!?")) == "né – 日本 🦙!"
    assert generator.generate_batch(["x", "yy"], stop="日") == ["né – ", "né – "]


def test_a_batch_gives_what_each_prompt_gives_alone(generator: TextGenerator) -> None:
    prompts = ["a", "Once upon a time", "de nouveau", "x" * 70, "end"]
    options = {"max_new_tokens": 30, "temperature": 0.9, "seed": 5, "stop": ["e", "\n"]}
    expected = [generator.generate(prompt, **options) for prompt in prompts]
    assert generator.generate_batch(prompts, slots=2, **options) == expected
    assert generator.generate_batch(prompts, **options) == expected
    assert generator.generate_batch([]) == []


def test_text_that_looks_special_is_text(generator: TextGenerator) -> None:
    text = "<|end_of_text|>"
    plain = generator._writer(text, {})
    allowed = generator._writer(text, {"allowed_special": {text}})
    assert plain.prompt == list(text.encode())
    assert allowed.prompt == [257]


def test_an_empty_prompt_begins_with_bos(generator: TextGenerator) -> None:
    assert generator._writer("", {}).prompt == [256]
    assert generator._writer("a", {}).prompt == [97]
    assert generator._writer("a", {"bos": True}).prompt == [256, 97]
    bare = Tokenizer.from_ranks({bytes([i]): i for i in range(256)}, pattern="cl100k")
    with pytest.raises(ValueError, match="the prompt is empty"):
        TextGenerator(generator.model, bare).generate("")


def test_bad_requests_are_named(generator: TextGenerator) -> None:
    with pytest.raises(ValueError, match="a stop string is empty"):
        generator.generate("a", stop="")
    with pytest.raises(ValueError, match="leaves no room in a context of 256"):
        generator.generate("a" * 256)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        generator.generate("a", max_new_tokens=0)
    with pytest.raises(ValueError, match="slots is 0"):
        generator.generate_batch(["a"], slots=0)
    with pytest.raises(TypeError, match="colour"):
        generator.generate("a", colour="red")


def test_a_vocabulary_larger_than_the_model_is_refused(generator: TextGenerator) -> None:
    config = generator.model.config.replace(vocab_size=200, eos_token_id=None)
    with pytest.raises(ValueError, match="258 ids, more than the model's 200"):
        TextGenerator(LlamaForCausalLM(config), generator.tokenizer)
