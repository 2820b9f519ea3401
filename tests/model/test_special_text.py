"""No way into a model, for generation, training or evaluation, turns text into a special token."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpe_llama import Tokenizer
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, TextGenerator, evaluation
from bpe_llama.model.training.finetuning.classification import read_labelled
from bpe_llama.model.training.finetuning.conversations import read_conversations
from bpe_llama.model.training.finetuning.plain_text import write_tokens

END, BAR = "<|im_end|>", "§"
TEXTS = [f"a{END}b", END, BAR, f"{BAR}{END}{BAR}", f"<|im_{END}end|>"]
TEMPLATE = "{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    tok = Tokenizer.train_from_iterator(["user im end"], 262, special_tokens=[END, BAR], progress=False)
    tok.chat_template = TEMPLATE
    return tok


@pytest.fixture(scope="module")
def generator(tok: Tokenizer) -> TextGenerator:
    config = LlamaConfig(
        vocab_size=tok.vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    return TextGenerator(LlamaForCausalLM(config, seed=0), tok)


def row(name: str, value: Callable[[str], Any]) -> Callable[[Tokenizer, str, Path], Iterable[int]]:
    """Return a function that reads a fine-tuning example of one field, beside a ``completion`` if it is a prompt."""

    def read(tok: Tokenizer, text: str, folder: Path) -> Iterable[int]:
        found = {name: value(text)} | ({"completion": "user"} if name == "prompt" else {})
        (folder / "rows.jsonl").write_text(json.dumps(found | ({"prompt": "user"} if name == "completion" else {})))
        (example,) = read_conversations([folder / "rows.jsonl"], tok, 100, progress=False).examples
        return example.ids.tolist()

    return read


def labelled(tok: Tokenizer, text: str, folder: Path) -> Iterable[int]:
    rows = ({"text": text, "label": label} for label in "ab")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_labelled([folder / "rows.jsonl"], tok, 100).texts[0].ids.tolist()


def plain_text(tok: Tokenizer, text: str, folder: Path) -> Iterable[int]:
    (folder / "text.txt").write_text(text, encoding="utf-8")
    write_tokens([folder / "text.txt"], tok, folder / "ids.npy", progress=False)
    return np.load(folder / "ids.npy").tolist()


TRAINING: dict[str, Callable[[Tokenizer, str, Path], Iterable[int]]] = {
    "chat": row("messages", lambda text: [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]),
    "classification": labelled,
    "completion": row("completion", str),
    "plain text": plain_text,
    "prompt": row("prompt", str),
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("door", TRAINING)
def test_of_training(tok: Tokenizer, door: str, text: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "text that looks like special tokens")
        ids = list(TRAINING[door](tok, text, tmp_path))
    assert not set(ids) & set(tok.special_tokens.values())
    assert text in tok.decode(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_a_role_that_spells_one_is_refused(tok: Tokenizer, text: str, tmp_path: Path) -> None:
    talk = row("messages", lambda role: [{"role": role, "content": "?"}, {"role": "assistant", "content": "!"}])
    with pytest.raises(ValueError, match=r"makes the special token .* from text of unknown origin"):
        talk(tok, text, tmp_path)


@pytest.mark.parametrize("text", TEXTS)
def test_of_generation(generator: TextGenerator, text: str) -> None:
    special = set(generator.tokenizer.special_tokens.values())
    request = generator.request(text, {"stop": text, "bad_words": [text]})
    assert generator.tokenizer.decode(request.prompt) == text
    assert not special & set(request.prompt).union(*request.options.bad_words)


def test_a_grammar_forces_text_and_not_the_special_token(generator: TextGenerator) -> None:
    pytest.importorskip("llguidance")
    special = set(generator.tokenizer.special_tokens.values())
    for given in ({"choice": [END]}, {"regex": r"<\|im_end\|>"}, {"json_schema": {"const": END}}):
        assert END in generator.generate("user", max_new_tokens=40, **given)
        assert not special & set(generator.last.ids[len(generator.last.prompt) :])


def test_of_evaluation(generator: TextGenerator) -> None:
    scores = [evaluation.evaluate_text(generator.model, generator.tokenizer, [text], progress=False) for text in TEXTS]
    assert [score.tokens for score in scores] == [len(generator.tokenizer.encode_ordinary(text)) - 1 for text in TEXTS]
