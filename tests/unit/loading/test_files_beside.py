"""Files beside a tokenizer's ranks, tiktoken's or Mistral's, name its special tokens, template and limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bpe_llama import Tokenizer
from tests.unit.loading.test_tekken import content, write

SPECIAL = {"<s>": 257, "</s>": 258, "<|reserved_0|>": 259}


def tiktoken_folder(folder: Path, name: str) -> Path:
    """Return a folder with a file of tiktoken's ranks, its pattern and special tokens."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256}
    Tokenizer.from_ranks(ranks, pattern="cl100k", special_tokens=SPECIAL).save(folder / "a.tiktoken")
    (folder / "a.tiktoken").rename(folder / name)
    (folder / "a.tiktoken.json").rename(folder / f"{name}.json")
    return folder


def tekken_folder(folder: Path) -> Path:
    write(folder, content())
    return folder


def state(folder: Path, name: str = "tokenizer_config.json", **fields: Any) -> None:
    (folder / name).write_text(json.dumps(fields), encoding="utf-8")


def listed(name: str, special: bool = True) -> dict[str, Any]:
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"content": name, "special": special, **flags}


@pytest.mark.parametrize("name", ["tokenizer.model", "a.tiktoken"])
def test_the_config_beside_ranks_of_tiktoken_is_obeyed(name: str, tmp_path: Path) -> None:
    state(
        tiktoken_folder(tmp_path, name),
        eos_token="<|eot|>",
        pad_token="<pad>",
        added_tokens_decoder={"259": listed("<|eot|>"), "260": listed("<pad>")},
        add_bos_token=True,
        chat_template="{{ messages[0].content }}",
        model_max_length=3,
        padding_side="left",
    )
    tok = Tokenizer.from_file(tmp_path)
    assert tok.special_tokens == {"<s>": 257, "</s>": 258, "<|eot|>": 259, "<pad>": 260}
    assert tok.special_tokens_map == {"bos_token": "<s>", "eos_token": "<|eot|>", "pad_token": "<pad>"}
    assert tok.end_ids == {259} and tok.pattern_name == "cl100k"
    assert tok(["a", "ab" * 9], truncation=True, padding=True)["input_ids"] == [[260, 257, 97], [257, 256, 256]]
    assert tok.apply_chat_template([{"role": "user", "content": "ab"}]) == [256]
    tok.save(tmp_path / "saved")
    assert Tokenizer.from_file(tmp_path / "saved").special_tokens_map == tok.special_tokens_map


def test_ranks_without_files_beside_them_stay_as_they_are(tmp_path: Path) -> None:
    tok = Tokenizer.from_file(tiktoken_folder(tmp_path, "a.tiktoken"))
    assert (tok.special_tokens, tok.eos_id, tok.chat_template) == (SPECIAL, 258, None)
    tok.save(tmp_path / "again.tiktoken")
    state(tmp_path, eos_token="<|reserved_0|>")
    assert Tokenizer.from_file(tmp_path / "a.tiktoken").eos_id == 258  # the file is named, not the folder


def test_the_files_beside_a_tekken_json_are_obeyed(tmp_path: Path) -> None:
    plain = Tokenizer.from_file(tekken_folder(tmp_path))
    assert plain.eos_id == 2 and plain.unk_id == 0
    state(
        tmp_path,
        eos_token="[/INST]",
        unk_token=None,
        extra_special_tokens=["<new>"],
        added_tokens_decoder={"20": listed("[THINK]"), "283": listed("<new>")},
    )
    state(tmp_path, "special_tokens_map.json", mask_token="[IMG]")
    tok = Tokenizer.from_file(tmp_path)
    assert (tok.eos_id, tok.unk_id, tok.bos_id, tok.pad_id) == (4, None, 1, plain.pad_id)
    assert tok.special_tokens["[THINK]"] == 20 and "<SPECIAL_20>" not in tok.special_tokens
    assert tok("<new>abc", allowed_special="all")["input_ids"] == [1, 283, 25 + 257]
    state(tmp_path, add_bos_token=False, add_eos_token=True)
    assert Tokenizer.from_file(tmp_path)("abc")["input_ids"] == [25 + 257, 2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"added_tokens_decoder": {"x": listed("a")}}, "added_tokens_decoder has the key 'x'; expected an id"),
        ({"added_tokens_decoder": ["a"]}, "added_tokens_decoder is "),
        ({"added_tokens_decoder": {"20": "a"}}, "added_tokens_decoder.20 is 'a'"),
        ({"eos_token": 3}, "eos_token is 3; expected a str"),
        ({"add_bos_token": "yes"}, "add_bos_token is 'yes'; expected true or false"),
        ({"split_special_tokens": True}, "split_special_tokens is True, which is not supported"),
        ({"added_tokens_decoder": {"999": listed("</s>")}}, "decoder.999 is the token '</s>', which has id 2"),
        ({"added_tokens_decoder": {"999": listed("a")}}, "decoder.999 is the token 'a', which has id "),
    ],
)
@pytest.mark.parametrize("is_tekken", [False, True])
def test_wrong_fields_are_named(fields: dict[str, Any], message: str, is_tekken: bool, tmp_path: Path) -> None:
    folder = tekken_folder(tmp_path) if is_tekken else tiktoken_folder(tmp_path, "tokenizer.model")
    state(folder, **fields)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: ") as caught:
        Tokenizer.from_file(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "more",
    [
        {"259": listed("<t>", special=False)},
        {"260": listed("<t>", special=False)},
        {"262": listed("<t>")},
        {"257": listed("</s>"), "258": listed("<s>"), "259": listed("<t>")},
    ],
    ids=["reserved", "next", "after a gap", "others exchanged"],
)
def test_listed_tokens_beside_ranks_have_the_ids_of_transformers(more: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tiktoken", reason="transformers reads ranks by it")
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    folder = tiktoken_folder(tmp_path, "tokenizer.model")
    decoder = {str(token_id): listed(name) for name, token_id in SPECIAL.items()} | more
    state(folder, tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder=decoder)
    ours, theirs = Tokenizer.from_file(folder), transformers.AutoTokenizer.from_pretrained(folder)
    text = "ab<t> <s></s>"
    expected = theirs(text)["input_ids"]
    assert ours(text, allowed_special="all")["input_ids"] == expected
    assert ("<t>" in ours.special_tokens) == all(token["special"] for token in more.values())
    ours.save(tmp_path / "saved")
    assert Tokenizer.from_file(tmp_path / "saved").added_tokens == ours.added_tokens
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")(text)["input_ids"] == expected
    ours.with_special_tokens(["<t>"]).save(tmp_path / "saved.tiktoken")


def test_an_id_that_the_ranks_have_is_kept_with_a_warning(tmp_path: Path) -> None:
    state(tiktoken_folder(tmp_path, "tokenizer.model"), added_tokens_decoder={"97": listed("<x>")})
    with pytest.warns(UserWarning, match="gives token '<x>' the id 97, which is ignored: it is 260") as caught:
        Tokenizer.from_file(tmp_path)
    assert caught[0].filename == __file__
