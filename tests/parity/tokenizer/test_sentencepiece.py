"""Ids and texts equal sentencepiece's, from tokenizer.model, tokenizer.json and GGUF alike; of JSON, tokenizers'."""

from __future__ import annotations

import json
import pickle
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import data
from bench.published import first_difference
from bpe_llama import Tokenizer
from tests.parity.tokenizer.sentencepiece_models import USER_DEFINED, Model, encode_around, in_gguf, train

# What SentencePiece treats in a way of its own, or a model has a token for.
AWKWARD = [
    *("", " ", "  ", "a", " a", "a ", "  a  b  ", "\n", "\n\n a", "\t\ta\t", "\r\n", "\0", "a\0b", "\x7f\x80"),
    *("▁", "▁▁ ▁", "a▁b", " ▁a", "▁ ", "\ufeffx", "\u3000a\u00a0b", "e\u0301", "ﬁ ½ Ⅷ"),
    *("😀 👩‍👩‍👧‍👦", "\u0378\U0010ffff"),
    *("<s>", "</s>", "<unk>", "<0x0A>", "<0x41>b", "[INST] hi [/INST]", "[REFERENCE_DOC_19][REFERENCE_DOC_1]x", " ⁇ "),
    *(" " * n + "x" for n in range(1, 70)),
    *("a" * n for n in (2, 17, 1000)),
    *("é" * n + " " * n for n in (2, 17, 1000)),
]

Options = dict[str, Any]
TRAINED: dict[str, Options] = {
    "llama": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "control_symbols": ["▁<PRE>"],
    },
    "no_prefix": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["\n\n", "▁▁", "▁▁▁▁", "<mask>"],
    },
    "collapsing": {"normalization_rule_name": "identity", "remove_extra_whitespaces": True},
    "across_words": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_by_whitespace": False,
        "user_defined_symbols": ["of the", "<sep>"],
    },
}


@pytest.fixture(scope="module", params=["mistral", "mistral_v3", *TRAINED])
def model_path(
    request: pytest.FixtureRequest,
    texts: dict[str, str],
    real: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    if request.param in TRAINED:
        lines = [line for text in texts.values() for line in text[:120_000].splitlines()]
        size: Options = {"vocab_size": 2000, "byte_fallback": True, "character_coverage": 0.995}
        path.write_bytes(train(lines, **size, **TRAINED[request.param]).SerializeToString())
    else:
        shutil.copy(real(data.vocabulary, request.param), path)
    return path


@pytest.fixture(scope="module")
def theirs(model_path: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(model_path))


@pytest.fixture(scope="module")
def ours(model_path: Path) -> Tokenizer:
    return Tokenizer.from_file(model_path)


def samples(texts: dict[str, str]) -> list[str]:
    """Return real text of every kind in parts of all lengths, awkward text, and random mixtures of the two."""
    draw = random.Random(0)
    parts = []
    for text in texts.values():
        for _ in range(150):
            start = draw.randrange(len(text))
            parts.append(text[start : start + int(1.02 ** draw.randrange(400))])
    letters = " ▁ab\n\tthe里é😀\u0300\0<>0xAs/"
    return AWKWARD + parts + ["".join(draw.choices(letters, k=draw.randrange(40))) for _ in range(500)]


def test_ids_equal_sentencepieces(
    ours: Tokenizer, theirs: sentencepiece.SentencePieceProcessor, texts: dict[str, str]
) -> None:
    for text in samples(texts):
        assert first_difference(ours.encode(text), theirs.encode(text)) == "equal", repr(text[:80])
    for text in (text[:100_000] for text in texts.values()):
        assert first_difference(ours.encode(text), theirs.encode(text)) == "equal"
    assert ours.encode_batch(AWKWARD, num_threads=2) == theirs.encode(AWKWARD)
    assert ours.vocab_size == theirs.vocab_size()
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_id(), theirs.eos_id())
    assert ours.encode("a b", bos=True, eos=True) == theirs.encode("a b", add_bos=True, add_eos=True)


def test_texts_equal_sentencepieces(
    ours: Tokenizer, theirs: sentencepiece.SentencePieceProcessor, texts: dict[str, str]
) -> None:
    for text in samples(texts):
        ids = theirs.encode(text)
        decoded = theirs.decode(ids)
        assert ours.decode(ids) == decoded
        stream = ours.decode_stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == decoded
        assert ours.decode([ours.bos_id, *ids], skip_special_tokens=True) == decoded


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text(ours: Tokenizer, theirs: sentencepiece.SentencePieceProcessor, text: str) -> None:
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids)


def test_what_is_saved_gives_the_same_ids_here_and_in_tokenizers(
    ours: Tokenizer, texts: dict[str, str], tmp_path: Path
) -> None:
    ours.save(tmp_path / "tokenizer.json")
    again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    pickled = pickle.loads(pickle.dumps(ours))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True  # special tokens are text, as for `encode`
    for text in samples(texts):
        ids = ours.encode(text)
        assert again.encode(text) == pickled.encode(text) == ids
        if text in ours.special_tokens or text == "<0x0A>":
            continue  # to tokenizers, a whole piece that is a token may be a special one or a byte
        assert first_difference(ids, theirs.encode(text, add_special_tokens=False).ids) == "equal", repr(text[:80])
        assert again.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    word = ours.encode("word")
    for special in ours.special_tokens.values():
        for ids in ([special, *word], [*word, special, *word]):
            assert ours.decode(ids) == again.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


def test_gguf_gives_llama_cpps_ids(
    model_path: Path,
    ours: Tokenizer,
    theirs: sentencepiece.SentencePieceProcessor,
    texts: dict[str, str],
    tmp_path: Path,
) -> None:
    model = Model.FromString(model_path.read_bytes())
    loaded = in_gguf(model, tmp_path / "m.gguf", bos=theirs.bos_id(), eos=theirs.eos_id())
    assert (loaded.bos_id, loaded.eos_id, loaded.vocab_size) == (ours.bos_id, ours.eos_id, ours.vocab_size)
    symbols = [piece.piece for piece in model.pieces if piece.type == USER_DEFINED]
    # llama.cpp heeds remove_extra_whitespaces for Unigram models only.
    collapses = model.normalizer_spec.remove_extra_whitespaces
    for text in samples(texts):
        if collapses and re.search("^ | $|  |▁", text):
            continue
        assert loaded.encode(text) == encode_around(theirs, symbols, text), repr(text[:80])


def _old_layout(described: dict[str, Any]) -> None:
    """Change what transformers writes now to what it wrote for Llama 2: a normalizer, and no pre-tokenizer."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    described["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    described["pre_tokenizer"] = None


def _split(described: dict[str, Any]) -> None:
    described["pre_tokenizer"] |= {"split": True, "prepend_scheme": "always"}


CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.filterwarnings("ignore:.*in its place")
@pytest.mark.parametrize("change", [None, _old_layout, _split])
def test_what_transformers_writes(
    change: Callable[[dict[str, Any]], None] | None, texts: dict[str, str], real: Callable[..., Any], tmp_path: Path
) -> None:
    shutil.copy(real(data.vocabulary, "mistral"), tmp_path / "tokenizer.model")
    written = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    written.chat_template = CHAT
    folder = tmp_path / "written"
    written.save_pretrained(folder)
    if change is not None:
        described = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        change(described)
        (folder / "tokenizer.json").write_text(json.dumps(described), "utf-8")
    ours, theirs = Tokenizer.from_file(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = [f"<s>{text}</s> {text}" for text in AWKWARD]
    for text in samples(texts)[::2] + special:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert first_difference(ours.encode(text, allowed_special="all"), expected) == "equal", repr(text[:80])
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=False)
    assert ours.to_huggingface() == Tokenizer.from_huggingface(folder).to_huggingface()

    loaded = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>", chat_template=CHAT
    )
    talk = [
        {"role": "user", "content": "  What is 2 < 3 &\n'naïve'? "},
        {"role": "assistant", "content": "True."},
        {"role": "user", "content": "Why?"},
    ]
    expected = loaded.apply_chat_template(talk, tokenize=False)
    assert ours.apply_chat_template(talk, tokenize=False) == expected
    assert ours.apply_chat_template(talk) == loaded.encode(expected, add_special_tokens=False)
