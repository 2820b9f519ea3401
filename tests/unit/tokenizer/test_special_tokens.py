"""Special and added tokens that the files of a folder name: read, used, saved."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Theirs
from transformers import AutoTokenizer

from bpe_llama import Tokenizer, _core
from tests.unit.tokenizer.described import described


def folder_with(tmp_path: Path, config: dict[str, Any], added: tuple[dict[str, Any], ...] = ()) -> Path:
    """Return a folder with a tokenizer.json, a tokenizer_config.json and the config.json of a LLaMA."""
    parts = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None}
    file = parts | described({"Regex": r"\s+|\S+"}, ["a", "b"], added)
    (tmp_path / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    return tmp_path


def test_flags_of_added_tokens_decoder_replace_those_of_the_file(tmp_path: Path) -> None:
    stated = {"content": "</s>", "lstrip": True, "rstrip": True, "normalized": False, "single_word": False}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {"257": stated | {"special": True}},
    }
    folder = folder_with(tmp_path, config, ({"content": "</s>"},))
    ours, theirs = Tokenizer.from_file(folder), AutoTokenizer.from_pretrained(folder)
    text = "ab  </s> ab"
    assert ours.encode(text, allowed_special="all") == theirs(text)["input_ids"] == [256, 257, 256]


@pytest.mark.filterwarnings("ignore:.*in its place")
@pytest.mark.parametrize("name", ["GPT2Tokenizer", "RobertaTokenizerFast", "GPTNeoXTokenizerFast", "Qwen2Tokenizer"])
def test_tokens_of_a_class_count_where_no_file_names_them(name: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"tokenizer_class": name, "model_max_length": 512})
    ours, theirs = Tokenizer.from_file(folder), AutoTokenizer.from_pretrained(folder)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert len(ours) == len(theirs)
    assert ours.special_tokens_map == dict(theirs.special_tokens_map)


def test_a_named_class_without_tokens_has_none(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast"}, ({"content": "</s>"},))
    assert Tokenizer.from_file(folder).eos_id is AutoTokenizer.from_pretrained(folder).eos_token_id is None


def test_max_length_alone_cuts_and_a_missing_limit_warns(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1e30})
    ours, theirs = Tokenizer.from_file(folder), AutoTokenizer.from_pretrained(folder)
    for options in ({"max_length": 2}, {"max_length": 2, "truncation": False}, {"max_length": 2, "truncation": True}):
        assert ours("ab ab ab", **options)["input_ids"] == theirs("ab ab ab", **options)["input_ids"]
    with pytest.warns(UserWarning, match="max_length"):
        assert ours("ab ab", truncation=True)["input_ids"] == theirs("ab ab", truncation=True)["input_ids"]


def test_a_special_token_stays_one(tmp_path: Path) -> None:
    tok = Tokenizer.from_file(folder_with(tmp_path, {}, ({"content": "</s>"},))).with_tokens(["</s>"])
    assert 257 not in tok.encode("ab</s>", disallowed_special=())
    assert tok.decode([256, 257], skip_special_tokens=True) == "ab"


@pytest.mark.parametrize(
    "stated",
    [
        {"extra_special_tokens": ["<a>", "<b>"]},
        {"additional_special_tokens": ["<a>", "</s>"]},
        {"extra_special_tokens": {"image": "<i>", "boi_token": "<b>"}},
        {"image_token": "<i>", "extra_special_tokens": ["<a>"]},
        {"model_specific_special_tokens": {"image": "<i>"}, "extra_special_tokens": ["<a>"]},
        {"extra_special_tokens": [{"__type": "AddedToken", "content": "<a>", "lstrip": True, "normalized": False}]},
    ],
)
def test_special_tokens_without_a_role_survive(stated: dict[str, Any], tmp_path: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", **stated}
    folder = folder_with(tmp_path, config, ({"content": "</s>"},))
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_file(folder)
    assert ours.special_tokens_map == dict(theirs.special_tokens_map)
    grown = ours.with_special_tokens(["<new>", "</s>"])
    theirs_grown = AutoTokenizer.from_pretrained(folder)
    theirs_grown.add_special_tokens({"extra_special_tokens": ["<new>"]}, replace_extra_special_tokens=False)
    for tok, expected in ((ours, theirs), (pickle.loads(pickle.dumps(ours)), theirs), (grown, theirs_grown)):
        tok.save(tmp_path / "saved")
        again = AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert again.all_special_tokens == expected.all_special_tokens
        assert dict(again.special_tokens_map) == dict(expected.special_tokens_map)
        text = "ab <a>ab<b>  <i><new></s>"
        assert again(text)["input_ids"] == expected(text)["input_ids"]
        read = Tokenizer.from_file(tmp_path / "saved")
        assert read(text, allowed_special="all")["input_ids"] == expected(text)["input_ids"]


@pytest.mark.parametrize("name", ["<naïve>", "Ã©", "ï Ġ", "Ġx", "日本", "plain"])
@pytest.mark.parametrize("special", [True, False])
def test_an_added_token_of_the_byte_alphabet_keeps_its_text(name: str, special: bool, tmp_path: Path) -> None:
    base = Tokenizer.train_from_iterator(["low lower lowest ï"] * 3, vocab_size=262, progress=False)
    tok = base.with_special_tokens([name]) if special else base.with_tokens([name])
    tok.save(tmp_path / "t.json")
    text = f"a{name} ï b"
    ids = tok.encode(text, allowed_special="all")
    assert tok.decode(ids) == text
    pickled, loaded = pickle.loads(pickle.dumps(tok)), Tokenizer.from_file(tmp_path / "t.json")
    theirs = Theirs.from_file(str(tmp_path / "t.json"))
    assert theirs.encode(text).ids == loaded.encode(text, allowed_special="all") == ids
    assert theirs.decode(ids, skip_special_tokens=False) == loaded.decode(ids) == pickled.decode(ids) == text
    stream = loaded.decode_stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == text


@pytest.mark.parametrize("name", ["é", "Ġlow"])
def test_an_added_token_that_a_file_would_confuse_is_not_saved(name: str, tmp_path: Path) -> None:
    tok = Tokenizer.train_from_iterator(["low lower lowest"] * 3, vocab_size=262, progress=False)
    grown = tok.with_tokens([name])
    pickled = pickle.loads(pickle.dumps(grown))
    for ours in (grown, pickled, pickle.loads(pickle.dumps(tok)).with_tokens([name])):
        assert ours.encode(f"a low{name}") == [*tok.encode("a low"), 262]
        assert ours.decode(ours.encode(f"a low{name}")) == f"a low{name}"
        assert ours.merges == tok.merges
    with pytest.raises(ValueError, match=f'"{name}" is spelt as ordinary token'):
        grown.save(tmp_path / "t.json")


@pytest.mark.parametrize("name", ["é", "ab"])
def test_an_added_token_is_saved_where_no_other_text_gives_it(name: str) -> None:
    """Not in `model.vocab`: `é` spells the byte 0xE9 there, and `ab` is a piece that is taken whole."""
    theirs = Theirs(models.BPE(vocab={"a": 0, "b": 1, "Ã": 2, "©": 3}, merges=[], ignore_merges=True))
    theirs.normalizer = normalizers.NFC()
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    theirs.decoder = decoders.ByteLevel()
    theirs.add_tokens([AddedToken(name, normalized=False, single_word=True)])
    ours = _core.Tokenizer.build_from_huggingface(theirs.to_str().encode())
    assert ours.general_because is None
    saved = ours.to_huggingface()
    readers = [
        ours,
        _core.Tokenizer.build_from_huggingface(saved.encode()),
        pickle.loads(pickle.dumps(Tokenizer(ours))),
    ]
    read = Theirs.from_str(saved)
    for text in ["é", "aé", "e\u0301", "é b", "鉀a", "ab", "ab é", "abab", "a\u00adab", "ab\u200dab", "1ab", "鉀 ab鉀"]:
        expected = theirs.encode(text).ids
        assert read.encode(text).ids == expected, text
        assert [tok.encode(text, allowed_special="all") for tok in readers] == [expected] * 3, text


def test_an_added_token_that_only_model_vocab_can_number_is_not_saved_where_text_gives_it_too() -> None:
    theirs = Theirs(models.BPE(vocab={"a": 0, "b": 7}, merges=[]))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.decoder = decoders.ByteLevel()
    ours = _core.Tokenizer.build_from_huggingface(theirs.to_str().encode())

    def grown(content: str, single_word: bool = False) -> _core.Tokenizer:
        return ours.with_added_tokens([(content, False, single_word, False, False, True)])

    for content, text in [("[M]", "a[M]b[M]"), ("x", "axb"), ("xx", "xxx")]:  # ids go on behind the hole
        assert Theirs.from_str(grown(content).to_huggingface()).encode(text).ids == grown(content).encode(text)
    for token, text in [(grown("é"), "鉀"), (grown("x", single_word=True), "ax")]:
        assert 8 not in token.encode(text)
        with pytest.raises(ValueError, match=r"added token .* has id 8, .* only if it is in model\.vocab too"):
            token.to_huggingface()


def test_names_and_ids_are_one_to_one(tmp_path: Path) -> None:
    tok = Tokenizer.train_from_iterator(
        ["low lower lowest é Ġ"] * 3, vocab_size=268, special_tokens=["<é>"], progress=False
    )
    tok.save(tmp_path / "t.json")
    theirs = Theirs.from_file(str(tmp_path / "t.json"))
    for ours in (tok, Tokenizer.from_file(tmp_path / "t.json"), tok.with_tokens(["new é"])):
        for i in range(ours.vocab_size):
            assert ours.token_to_id(ours.id_to_token(i)) == i
            assert ours.id_to_token(i) == theirs.id_to_token(i) or i >= theirs.get_vocab_size()
            assert ours.token_to_id(ours.id_to_bytes(i)) == i
    for name in ["Ġlow", "é", "Ġ", "Ã©", "<é>", "low"]:
        assert tok.token_to_id(name) == theirs.token_to_id(name)
    assert tok.token_to_id(" low") == tok.token_to_id(b" low") == tok.token_to_id("Ġlow")  # text, where no name is
    assert tok.token_to_id("no such token") is tok.token_to_id(b"no such token") is None


def test_an_allowed_token_may_begin_inside_one_that_is_not() -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks, specials = {bytes([byte]): byte for byte in range(256)}, {"<a><b>": 300, "<b>": 301, "><": 302}
    tok = Tokenizer.from_ranks(ranks, pattern="cl100k", special_tokens=specials)
    theirs = tiktoken.Encoding("t", pat_str=tok.pattern, mergeable_ranks=ranks, special_tokens=specials)
    for text in ("<a><b>", "<a><b><b>", "é<a><b", "<a><a><b>"):
        for allowed in ({"<b>"}, {"><"}, {"<a><b>"}, set()):
            expected = theirs.encode(text, allowed_special=allowed, disallowed_special=())
            assert tok.encode(text, allowed_special=allowed) == expected, (text, allowed)


@pytest.mark.parametrize("text", ["<|x|>", "<|x|>x", "<|x<|y|>x|>", "x<|x|>"])
def test_other_added_tokens_are_not_found_inside_a_special_token(text: str) -> None:
    base = Tokenizer.train_from_iterator(["a"], 258, special_tokens=["<|x|>", "<|y|>"], progress=False)
    tok = base.with_added_tokens([(name, False, False, False, False, False) for name in ("|x", "|>x")])
    theirs = Theirs.from_str(tok.to_huggingface())
    theirs.encode_special_tokens = True
    expected = theirs.encode(text).ids
    assert tok.encode(text) == expected
    assert tok.encode(text, allowed_special={"<|y|>"}) == expected or "<|y|>" in text


def test_special_tokens_that_can_be_read_once_hold_for_every_text() -> None:
    tok = Tokenizer.train_from_iterator(["low lower"] * 3, vocab_size=258, special_tokens=["</s>"], progress=False)
    texts, names = ["</s>low", "low</s>"], ["</s>"]
    for offsets in (False, True):
        found = tok(texts, texts, allowed_special=iter(names), return_offsets_mapping=offsets)
        assert found == tok(texts, texts, allowed_special=names, return_offsets_mapping=offsets)
    left = tok.truncate("low </s></s>", 2, side="left", allowed_special=(name for name in names))
    assert left == "</s></s>" == tok.truncate("low </s></s>", 2, side="left", allowed_special=names)


def test_a_grown_tokenizer_has_templates_of_its_own() -> None:
    tok = Tokenizer.train_from_iterator(["low lower"] * 3, vocab_size=258, progress=False)
    tok.chat_template = {"default": "D"}
    for grown in (
        tok.with_special_tokens(["<a>"]),
        tok.with_tokens(["b"]),
        Tokenizer.train_from_iterator(["slow slower"] * 3, vocab_size=262, base=tok, progress=False),
    ):
        assert isinstance(grown.chat_template, dict)
        grown.chat_template["default"] = "another"
        assert tok.chat_template == {"default": "D"}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *((name, "bos_id") for name in ("<|begin_of_text|>", "<s>", "<bos>", "<|bos|>", "<|startoftext|>")),
        *((name, "eos_id") for name in ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<|eos|>")),
        ("<|end|>", None),
    ],
)
def test_special_tokens_of_usual_names_have_a_role(name: str, role: str | None, tmp_path: Path) -> None:
    made = Tokenizer.train_from_iterator(["abab"], 258, special_tokens=[name], progress=False)
    made.save(tmp_path)
    for tok in (made, Tokenizer.from_file(tmp_path), Tokenizer.from_file(tmp_path / "tokenizer.json")):
        assert [each for each in ("bos_id", "eos_id", "pad_id") if getattr(tok, each) is not None] == [role] * bool(
            role
        )
