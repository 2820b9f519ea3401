"""Saving and loading."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bpe_llama import Tokenizer
from bpe_llama._files import atomic_write
from bpe_llama._loading.load import file_in


def test_tokenizer_json_keeps_everything(tok: Tokenizer, tmp_path: Path, corpus: list[str]) -> None:
    tok.save(tmp_path / "tokenizer.json")
    for again in (
        Tokenizer.from_file(tmp_path / "tokenizer.json"),
        Tokenizer.from_file(str(tmp_path)),
        Tokenizer.from_huggingface(tmp_path / "tokenizer.json"),
    ):
        assert again.encode(corpus[0]) == tok.encode(corpus[0])
        assert again.mergeable_ranks == tok.mergeable_ranks
        assert again.special_tokens == tok.special_tokens
        assert again.pattern == tok.pattern
        assert again.merges == tok.merges
        assert (again.vocab_size, again.bos_id, again.eos_id) == (tok.vocab_size, tok.bos_id, tok.eos_id)


def test_tiktoken_files_keep_ranks(tok: Tokenizer, tmp_path: Path, corpus: list[str]) -> None:
    tok.save(tmp_path / "vocab.tiktoken")
    again = Tokenizer.from_tiktoken(tmp_path / "vocab.tiktoken", pattern=tok.pattern, special_tokens=tok.special_tokens)
    assert again.mergeable_ranks == tok.mergeable_ranks
    assert again.encode(corpus[0]) == tok.encode(corpus[0])


def test_tiktoken_files_keep_the_roles_of_special_tokens(tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    tok = Tokenizer.from_ranks(ranks, special_tokens={"<s>": 256, "</s>": 257, "<|eot|>": 258, "<pad>": 259})
    tok.save(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text("utf-8"))
    config |= {"bos_token": None, "eos_token": "<|eot|>", "pad_token": "<pad>", "unk_token": "</s>", "end_ids": [257]}
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tok = Tokenizer.from_file(tmp_path / "a")
    (tmp_path / "b").mkdir()
    path = tmp_path / "b" / "c.tiktoken"
    tok.save(path)
    for again in (Tokenizer.from_file(path), Tokenizer.from_tiktoken(path), Tokenizer.from_file(tmp_path / "b")):
        assert (again.bos_id, again.eos_id, again.pad_id, again.unk_id) == (None, 258, 259, 257)
        assert again.end_ids == {257, 258}
    named = Tokenizer.from_tiktoken(path, special_tokens={"<s>": 256})
    assert (named.bos_id, named.eos_id, named.end_ids) == (256, None, set())
    beside = path.with_name("c.tiktoken.json")
    stated = json.loads(beside.read_text("utf-8"))
    beside.write_text(json.dumps({key: stated[key] for key in ("pattern", "special_tokens")}), encoding="utf-8")
    old = Tokenizer.from_file(path)  # as the usual names say
    assert (old.bos_id, old.eos_id, old.pad_id, old.end_ids) == (256, 257, None, {257})


def test_ranks_in_memory(tok: Tokenizer, corpus: list[str]) -> None:
    again = Tokenizer.from_ranks(tok.mergeable_ranks, pattern=tok.pattern, special_tokens=tok.special_tokens)
    assert again.encode(corpus[0]) == tok.encode(corpus[0])


def test_an_unknown_suffix_is_named(tok: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.pickle"):
        tok.save(tmp_path / "vocab.pickle")
    assert list(tmp_path.iterdir()) == []


def test_saving_leaves_no_temporary_file_and_replaces_whole(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("old")
    tok.save(tmp_path / "tokenizer.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))


def test_two_threads_write_to_different_temporary_names(tmp_path: Path) -> None:
    path, names = tmp_path / "m.gguf", list[Path]()

    def write() -> None:
        with atomic_write(path) as temporary:
            names.append(temporary)
            temporary.write_text("theirs")

    with atomic_write(path) as temporary:
        temporary.write_text("ours")
        other = threading.Thread(target=write)
        other.start()
        other.join()
        assert path.read_text() == "theirs" and temporary != names[0]
    assert path.read_text() == "ours" and list(tmp_path.iterdir()) == [path]


def test_half_written_files_in_a_folder_are_not_read(tok: Tokenizer, tmp_path: Path) -> None:
    tok.save(tmp_path / "vocab.tiktoken")
    (tmp_path / ".vocab.4242-1.tiktoken").write_text("half")
    assert file_in(tmp_path) == tmp_path / "vocab.tiktoken"


def test_saving_into_a_folder_that_is_not_there_raises(tok: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        tok.save(tmp_path / "missing" / "tokenizer.json")


@pytest.mark.parametrize("first", ["100", "version1", "a"])
def test_a_tokenizer_json_is_never_a_vocabulary(first: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({first: 1, "model": {}}), encoding="utf-8")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(ValueError, match=rf"tokenizer\.json: not a tokenizer\.json: unknown field `{first}`"):
            Tokenizer.from_file(path)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("other.json", "bos_id, eos_id, mask_token, chat_template, model_max_length"),
        ("vocab.json", "bos_id, eos_id, mask_token, chat_template, model_max_length"),
        ("other.tiktoken", "mask_token, chat_template, model_max_length"),
        ("tokenizer.json", None),
        ("folder", None),
    ],
)
def test_what_a_file_of_this_name_does_not_hold_is_named(name: str, lost: str | None, tmp_path: Path) -> None:
    made = Tokenizer.train_from_iterator(["low"], 259, special_tokens=["<a>", "<b>", "<m>"], progress=False)
    made.save(tmp_path)
    path, out = tmp_path / "tokenizer_config.json", tmp_path / "out"
    config = json.loads(path.read_text(encoding="utf-8")) | {"model_max_length": 9, "chat_template": "{{ messages }}"}
    config |= {"bos_token": "<a>", "eos_token": "<b>", "mask_token": "<m>"}
    path.write_text(json.dumps(config), encoding="utf-8")
    tok = Tokenizer.from_file(tmp_path)
    out.mkdir()
    said = f"from_file will not find this tokenizer's {lost} there; expected a folder"
    with contextlib.nullcontext() if lost is None else pytest.warns(UserWarning, match=said):
        tok.save(out / name)  # a warning that is not expected is an error
    if lost is None:
        assert Tokenizer.from_file(out / name).special_tokens_map == tok.special_tokens_map


def test_a_vocabulary_of_another_name_is_refused_with_advice(tmp_path: Path) -> None:
    # What lies beside it is another tokenizer's.
    for name, text in (("vocab.json", '{"a": 0}'), ("merges.txt", ""), ("encoder.json", '{"b": 0}')):
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"encoder\.json: begins with 'b' and a number, like a vocab\.json"):
        Tokenizer.from_file(tmp_path / "encoder.json")
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab\.bpe: begins with '#version', like a merges\.txt"):
        Tokenizer.from_file(tmp_path / "vocab.bpe")


def test_many_special_tokens_cost_linear_time(tok: Tokenizer, tmp_path: Path) -> None:
    names = [f"<|{i}|>" for i in range(20_000)]
    start = time.process_time()
    tok.with_special_tokens([*names, names[0]]).save(tmp_path / "many")
    again = Tokenizer.from_file(tmp_path / "many")
    assert time.process_time() - start < 20  # a minute where each token is looked for in a list
    assert len(again) == len(tok) + len(names)
    config = json.loads((tmp_path / "many" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["extra_special_tokens"] == names


@pytest.mark.parametrize(
    "template", [5, ["x"], b"x", {"a/b": "x"}, {"a" * 300: "x"}, {"a": 5}, "\ud800", {"a\ud800": "x"}], ids=repr
)
def test_a_chat_template_that_cannot_be_saved_leaves_the_old_files(template: Any, tmp_path: Path) -> None:
    Tokenizer.train_from_iterator(["ab"], 257, progress=False).save(tmp_path)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tok = Tokenizer.train_from_iterator(["cd"], 257, progress=False)
    tok.chat_template = template
    with pytest.raises((TypeError, ValueError), match=r"chat.template"):
        tok.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


@pytest.mark.parametrize("key", ["chat_template", "model_input_names"])
def test_a_configuration_with_a_lone_surrogate_is_refused(key: str, tmp_path: Path) -> None:
    Tokenizer.train_from_iterator(["ab"], 257, progress=False).save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    value = ["\ud800"] if key == "model_input_names" else "\ud800"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=rf"tokenizer_config\.json: {key} holds"):
        Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize("wrong", [{"pattern": "("}, {"bos_id": 2**40}, {"special_tokens": {"<s>": 1}}], ids=repr)
def test_wrong_attributes_of_a_tiktoken_file_are_named_with_their_file(wrong: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "x.tiktoken"
    Tokenizer.train_from_iterator(["ab"], 258, special_tokens=["<s>"], progress=False).save(path)
    beside = tmp_path / "x.tiktoken.json"
    beside.write_text(json.dumps(json.loads(beside.read_text()) | wrong))
    with pytest.raises(ValueError, match=r"x\.tiktoken\.json: "):
        Tokenizer.from_file(path)
