"""The tokenizers of model families: ids, ends and text equal transformers'."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from bpe_llama import Tokenizer as Ours
from tests.parity.families.published import FAMILIES, GENERAL, WORDS, build


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = request.param
    return build(FAMILIES[name], tmp_path_factory.mktemp("family") / "")


def texts() -> list[str]:
    draw = random.Random(1)
    return ["", " ", "a", *("".join(draw.choices([*WORDS, " ", " "], k=draw.randrange(1, 12))) for _ in range(150))]


def check(ours: Ours, theirs: PreTrainedTokenizerFast) -> None:
    ends = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id)
    stated = (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id)
    assert ends == stated
    assert len(ours) == len(theirs)
    for text in texts():
        expected = theirs(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        got = ours(text, allowed_special="all", return_offsets_mapping=True, return_special_tokens_mask=True)
        assert got["input_ids"] == expected["input_ids"], text
        assert got["offset_mapping"] == expected["offset_mapping"], text
        assert got["attention_mask"] == expected["attention_mask"]
        assert got["special_tokens_mask"] == expected["special_tokens_mask"]
        ids = expected["input_ids"]
        for skip in (False, True):
            wanted = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special_tokens=skip) == wanted, text
            stream = ours.decode_stream(skip_special_tokens=skip)
            assert "".join(map(stream.push, ids)) + stream.flush() == wanted
    for first, second in zip(texts()[3:30], texts()[40:67], strict=True):
        expected = theirs(first, second, max_length=9, truncation=True, return_token_type_ids=True)
        got = ours(first, second, allowed_special="all", max_length=9, truncation=True, return_token_type_ids=True)
        assert got["input_ids"] == expected["input_ids"]
        assert got["token_type_ids"] == expected["token_type_ids"]


def test_a_family_as_published(folder: Path) -> None:
    check(Ours.from_file(folder), PreTrainedTokenizerFast.from_pretrained(folder))


def test_a_family_saved_by_us(folder: Path, tmp_path: Path) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    loaded = Ours.from_file(folder)
    loaded.save(tmp_path / "saved")
    check(Ours.from_file(tmp_path / "saved"), theirs)
    check(pickle.loads(pickle.dumps(loaded)), theirs)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    ends = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    for text in texts():
        assert again(text)["input_ids"] == theirs(text)["input_ids"]
    ours = Ours.from_file(tmp_path / "saved")
    known = (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id)
    assert tuple(getattr(again, end) for end in ends) == known


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_most_families_take_the_fast_way(name: str, tmp_path: Path) -> None:
    loaded = Ours.from_file(build(FAMILIES[name], tmp_path))
    assert (loaded.pipeline == "fast") is (name not in GENERAL), loaded.general_because


@pytest.mark.parametrize("name", ["llama 2", "mistral, metaspace", "gemma"])
def test_bytes_of_unknown_characters_are_streamed(name: str, tmp_path: Path) -> None:
    ours, theirs = Ours.from_file(build(FAMILIES[name], tmp_path)), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    word = theirs.encode("the", add_special_tokens=False)
    end = theirs.eos_token_id
    for spelt in ("हिन्दी".encode(), "ह".encode() + b"\xe0", b"\xe0" + "ह".encode(), b"\xff\n", b"\n\n"):
        run = theirs.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in spelt])
        for ids in (run, [*run, *word], [*word, *run, end, *run], [end, *run[:2], end, *run[2:], *word]):
            for skip in (False, True):
                stream = ours.decode_stream(skip_special_tokens=skip)
                parts = [stream.push(i) for i in ids]
                assert "".join(parts) + stream.flush() == theirs.decode(ids, skip_special_tokens=skip)
