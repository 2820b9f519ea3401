"""Special tokens that are looked for in normalized text: a message does not spell one, however it is normalized."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bpe_llama import Tokenizer, chat
from tests.unit.tokenizer.test_special_text import DOORS

END = "<|im_end|>"
NORMALIZERS = {
    "lower case": {"type": "Lowercase"},
    "NFKC": {"type": "NFKC"},
    "replaced": {"type": "Replace", "pattern": {"String": "q"}, "content": END},
    "removed": {"type": "Replace", "pattern": {"String": "~"}, "content": ""},
}
TEXTS = {"lower case": "<|IM_end|>", "NFKC": "＜|im_end|＞", "replaced": "q", "removed": "<|im~_end|>"}
TEMPLATE = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}<s>{% endfor %}"


@pytest.fixture(params=NORMALIZERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tok(kind: str, tmp_path: Path) -> Tokenizer:
    """A tokenizer whose file finds special tokens in normalized text."""
    plain = Tokenizer.train_from_iterator(["user im end"], 260, special_tokens=[END, "<s>"], progress=False)
    file = json.loads(plain.to_huggingface()) | {"normalizer": NORMALIZERS[kind]}
    for token in file["added_tokens"]:
        token["normalized"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    tok = Tokenizer.from_file(tmp_path / "tokenizer.json")
    tok.chat_template = TEMPLATE
    return tok


def test_a_message_makes_none(tok: Tokenizer, kind: str) -> None:
    end, begin = tok.special_tokens[END], tok.special_tokens["<s>"]
    text = TEXTS[kind]
    assert end in tok.encode(text, allowed_special="all")  # as `tokenizers` does
    ids = tok.apply_chat_template([{"role": "user", "content": f"a{text}b"}])
    assert end not in ids and ids.count(begin) == 1
    assert ids == [*tok.encode_ordinary(f"a{text}b"), begin]


def test_an_answer_of_the_training_data_makes_none(tok: Tokenizer, kind: str) -> None:
    """Or it is refused: its characters have no places in the ids."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": TEXTS[kind]}]
    try:
        ids, _ = chat.encode_conversation(tok, talk)
    except ValueError as error:
        assert "this tokenizer rewrites text" in str(error)
    else:
        assert tok.special_tokens[END] not in ids


def test_the_template_makes_its_own(tok: Tokenizer) -> None:
    (begin, *others) = tok.apply_chat_template([{"role": "user", "content": ""}])
    assert begin == tok.special_tokens["<s>"] and not others


@pytest.mark.parametrize("door", DOORS)
def test_no_way_into_the_tokenizer_makes_one(tok: Tokenizer, kind: str, door: str, tmp_path: Path) -> None:
    try:
        ids = [int(token_id) for token_id in DOORS[door](tok, TEXTS[kind], tmp_path)]
    except ValueError as error:
        assert door in ("encode_with_dropout", "tiktoken", "encode_bytes"), error  # which take no such tokenizer
    else:
        assert tok.special_tokens[END] not in ids
