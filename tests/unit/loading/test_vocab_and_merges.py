"""A vocab.json, a merges.txt or a file beside them that is damaged is refused, by file, place and value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bpe_llama import Tokenizer
from bpe_llama._loading.added_tokens import AddedToken, AddedTokens

# GPT-2's alphabet: the characters that stand for bytes in a vocab.json.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
ALPHABET = [chr(byte) for byte in PRINTABLE] + [chr(256 + i) for i in range(256 - len(PRINTABLE))]
MERGED = ["ab", "bc", "abc", "Ġa"]
VOCAB = {token: i for i, token in enumerate([*ALPHABET, *MERGED])}
MERGES = "#version: 0.2\na b\nb c\nab c\nĠ a\n"
A, B, C = (VOCAB[letter] for letter in "abc")


def write(folder: Path, vocab: object = VOCAB, merges: str = MERGES, **files: object) -> Path:
    """Write a folder; a str stands for the text of a file."""
    for name, content in {"vocab": vocab, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    (folder / "merges.txt").write_bytes(merges.encode())
    return folder


def test_a_folder_and_either_file_are_read(tmp_path: Path) -> None:
    write(tmp_path)
    for path in (tmp_path, tmp_path / "vocab.json", tmp_path / "merges.txt"):
        tok = Tokenizer.from_file(path)
        assert tok.encode("abc a") == [VOCAB["abc"], VOCAB["Ġa"]]
        assert tok.decode(tok.encode("abc a")) == "abc a"
        assert tok.special_tokens == {"<|endoftext|>": len(VOCAB)}
        assert tok.bos_id == tok.eos_id == len(VOCAB)


def test_a_tokenizer_json_goes_before(tmp_path: Path) -> None:
    Tokenizer.train_from_iterator(["xyxy"], 257, progress=False).save(tmp_path / "tokenizer.json")
    assert Tokenizer.from_file(write(tmp_path)).vocab_size == 257


@pytest.mark.parametrize(
    ("merges", "ids"),
    [
        (MERGES, [VOCAB["abc"]]),
        ("a b\nb c\nab c", [VOCAB["abc"]]),
        ("#version: 0.2\r\na b\r\nb c\r\nab c\r\n", [VOCAB["abc"]]),
        ("", [A, B, C]),
        ("b c\na b\n", [A, VOCAB["bc"]]),
        # Of a merge that is given twice, the last place counts, as in tokenizers.
        ("a b\nb c\na b\n", [A, VOCAB["bc"]]),
    ],
)
def test_merges(tmp_path: Path, merges: str, ids: list[int]) -> None:
    assert Tokenizer.from_file(write(tmp_path, merges=merges)).encode("abc") == ids


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ("#version: 0.2\na b\n\nb c\n", "merges.txt: line 3 is ''; expected two tokens with one space between"),
        ("a b\nb c\n\n", "merges.txt: line 3 is ''"),
        ("a b c\n", "merges.txt: line 1 is 'a b c'"),
        ("a  b\n", "merges.txt: line 1 is 'a  b'"),
        ("a b \n", "merges.txt: line 1 is 'a b '"),
        ("a\tb\n", r"merges.txt: line 1 is 'a\tb'"),
        ("a b\rb c\n", r"merges.txt: line 1 is 'a b\rb c'"),
        ("a b\nb z€\n", "merges.txt: line 2 is 'b z€', but token 'z€' is not in vocab.json"),
        ("a b\na c\n", "merges.txt: line 2 is 'a c', but token 'ac' is not in vocab.json"),
        ("\ufeffa b\n", r"merges.txt: line 1 is '\ufeffa b', but token '\ufeffa' is not in vocab.json"),
    ],
)
def test_a_wrong_merge_is_named_by_its_line(tmp_path: Path, merges: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Tokenizer.from_file(write(tmp_path, merges=merges))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ("[1]", "vocab.json: expected an object of tokens and ids, got a list"),
        ('{"a": ', "vocab.json: not valid JSON"),
        ('{"a": "1"}', "vocab.json: token 'a' has id '1'; expected a number from 0"),
        ('{"a": 1.0}', "vocab.json: token 'a' has id 1.0; expected a number from 0"),
        ('{"a": true}', "vocab.json: token 'a' has id True; expected a number from 0"),
        ('{"a": -1}', "vocab.json: token 'a' has id -1; expected a number from 0"),
        ('{"a": 4294967296}', "vocab.json: token 'a' has id 4294967296; expected"),
        ('{"a": {"b": 1}}', "vocab.json: token 'a' has id {'b': 1}; expected"),
        ('{"a": 1, "b": 2, "a": 3}', "vocab.json: token 'a' is given twice, with ids 1 and 3"),
        ('{"a": 1, "b": 1}', "vocab.json: tokens 'a' and 'b' share id 1"),
        (VOCAB | {"hole": 261}, "added token '<|endoftext|>' gets id 261, the number of tokens before it, but a token"),
    ],
)
def test_a_wrong_vocabulary_is_named(tmp_path: Path, vocab: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Tokenizer.from_file(write(tmp_path, vocab=vocab))
    assert message in str(caught.value)


def test_a_hole_that_no_token_falls_into_is_no_error(tmp_path: Path) -> None:
    tok = Tokenizer.from_file(write(tmp_path, vocab=VOCAB | {"far": 900}))
    assert tok.vocab_size == 901
    assert tok.special_tokens == {"<|endoftext|>": 261}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (write(tmp_path) / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"merges\.txt"):
        Tokenizer.from_file(tmp_path)
    (write(tmp_path) / "vocab.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocab\.json"):
        Tokenizer.from_file(tmp_path / "merges.txt")


CONFIG = "tokenizer_config.json: "
MAP = "special_tokens_map.json: "
LISTED = "added_tokens_decoder"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tokenizer_class": "FooTokenizer"}, "tokenizer_class is 'FooTokenizer', which is no known class"),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "expected one of GPT2Tokenizer, CodeGen"),
        ({"tokenizer_class": ["GPT2Tokenizer"]}, "tokenizer_class is ['GPT2Tokenizer'], which"),
        ({"split_special_tokens": True}, CONFIG + "split_special_tokens is True, which is not"),
        ({"language": "de", "tokenizer_class": "WhisperTokenizer"}, CONFIG + "language is 'de'"),
        ({"task": "sing", "tokenizer_class": "WhisperTokenizer"}, CONFIG + "task is 'sing'; expected"),
        ({"add_prefix_space": "yes"}, CONFIG + "add_prefix_space is 'yes'; expected true or false"),
        ({"bos_token": {"text": "<s>"}}, CONFIG + "bos_token is {'text': '<s>'}; expected a str"),
        ({"bos_token": 3}, CONFIG + "bos_token is 3; expected a str or an object"),
        ({"extra_special_tokens": "<s>"}, CONFIG + "extra_special_tokens is '<s>'; expected a list"),
        ({LISTED: {"x": {}}}, "added_tokens_decoder has the key 'x'; expected an id"),
        ({LISTED: {"5": "a"}}, "added_tokens_decoder.5 is 'a'; expected an object"),
        ({LISTED: {"5": {"content": 1}}}, "decoder.5.content is 1; expected a str"),
        ({LISTED: {"5": {"content": "a", "special": 1}}}, "decoder.5.special is 1; expected true or false"),
        (
            {LISTED: {"5": {"content": "a", "bold": True}}},
            "decoder.5 has the unknown field 'bold'; expected content, single_word",
        ),
        ({"add_bos_token": True, "bos_token": "a b"}, "token 'a b' is added to a text; expected no white space"),
        (
            {"tokenizer_class": "RobertaTokenizer", "sep_token": None},
            CONFIG + "sep_token is null; expected the token that is added to a text",
        ),
    ],
)
def test_a_wrong_field_of_the_config_is_named(tmp_path: Path, content: Any, message: str) -> None:
    _refused(write(tmp_path, tokenizer_config=content), message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "config",
            {"model_type": "bert"},
            "config.json: model_type is 'bert', which is no known class for a vocab.json",
        ),
        ("special_tokens_map", {"bos_token": ["<s>"]}, MAP + "bos_token is ['<s>']; expected a token"),
        ("special_tokens_map", {"extra_special_tokens": "<s>"}, MAP + "extra_special_tokens is '<s>'; expected a list"),
        ("special_tokens_map", {"dropout": 1}, MAP + "dropout is 1; expected only names that end in"),
        ("added_tokens", {"<s>": "5"}, "added_tokens.json: token '<s>' has id '5'; expected a number"),
        ("added_tokens", [], "added_tokens.json: expected a JSON object, found list"),
    ],
)
def test_a_wrong_field_beside_them_is_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    _refused(write(tmp_path, **{name: content}), message)


def _refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Tokenizer.from_file(folder)
    assert str(caught.value).startswith(str(folder))
    assert message in str(caught.value)


def test_added_tokens_take_the_next_ids() -> None:
    added = AddedTokens({"a": 0, "b": 1, "c": 5})
    added.add([AddedToken("b"), AddedToken("x", special=True), AddedToken(""), AddedToken("x", lstrip=True)])
    assert [(token["id"], token["content"], token["lstrip"]) for token in added.as_json()] == [
        (1, "b", False),
        (3, "x", True),
    ]
    added.add([AddedToken("c"), AddedToken("y")])
    assert (added.id_of("c"), added.id_of("y"), added.id_of("z")) == (5, 6, None)
