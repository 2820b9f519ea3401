"""Ids and texts of a tekken.json equal mistral-common's, on Mistral's own file and on small ones of every version."""

from __future__ import annotations

import base64
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tiktoken._educational import bpe_train

from bench import data
from bench.published import first_difference
from bpe_llama import Tokenizer

# What tiktoken's trainer learns from here, in bytes: enough for tokens of several bytes and of parts of characters.
SAMPLE = "the then there other é éé 中文 中 文字 12 123 it's don't \n\n  \t" * 3
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def small_file(**changes: Any) -> dict[str, Any]:
    """Return the content of a tekken.json of 300 tokens, 20 of them special; ``changes`` replace parts of it."""
    ranks = bpe_train(data=SAMPLE, vocab_size=290, pat_str=PATTERN, visualise=None)
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    ]
    config = {
        "pattern": PATTERN,
        "num_vocab_tokens": 290,
        "default_vocab_size": 300,
        "default_num_special_tokens": 20,
        "version": "v3",
    }
    content: dict[str, Any] = {"config": config, "vocab": entries}
    for key, value in changes.items():
        (config if key in config else content)[key] = value
    return content


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "tekken.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def path(real: Callable[..., Any]) -> Path:
    return Path(real(data.vocabulary, "tekken"))


@pytest.fixture(scope="module")
def ours(path: Path) -> Tokenizer:
    return Tokenizer.from_file(path)


@pytest.fixture(scope="module")
def theirs(path: Path) -> Tekkenizer:
    return Tekkenizer.from_file(path)


def test_ids_equal_mistral_commons_on_real_text(ours: Tokenizer, theirs: Tekkenizer, texts: dict[str, str]) -> None:
    for text in (text[:300_000] for text in texts.values()):
        expected = theirs.encode(text, bos=False, eos=False)
        assert first_difference(ours.encode(text), expected) == "equal"
        assert ours.decode(expected) == theirs.decode(expected) == text
        lines = text.splitlines()[::7]
        assert ours.encode_batch(lines, bos=True, eos=True) == [theirs.encode(line, True, True) for line in lines]


def test_adversarial_text(ours: Tokenizer, theirs: Tekkenizer, adversarial: dict[str, str]) -> None:
    wrong = {}
    for name, text in adversarial.items():
        text = text[:20_000]
        result = first_difference(ours.encode(text), theirs.encode(text, bos=False, eos=False))
        if result != "equal":
            wrong[name] = result
    assert wrong == {}


def test_every_id_and_the_ends(ours: Tokenizer, theirs: Tekkenizer) -> None:
    assert ours.vocab_size == theirs.n_words
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_id, theirs.eos_id)
    assert (ours.token_to_id("<pad>"), ours.token_to_id("<unk>")) == (theirs.pad_id, theirs.unk_id)
    assert ours.special_tokens == theirs._special_tokens_reverse_vocab
    for token_id in range(theirs.n_words):
        assert ours.id_to_bytes(token_id) == theirs.id_to_byte_piece(token_id, SpecialTokenPolicy.KEEP)
        assert ours.decode([token_id]) == theirs.id_to_piece(token_id)
    for name, token_id in ours.special_tokens.items():
        assert ours.token_to_id(name) == token_id == theirs.get_special_token(name)


def test_special_token_text_in_files_is_ordinary(ours: Tokenizer, theirs: Tekkenizer) -> None:
    text = "<s>[INST] a<pad>[/INST]</s><unk><SPECIAL_20>[IMG] "
    assert ours.encode(text) == theirs.encode(text, bos=False, eos=False)
    assert ours.encode("[INST]", allowed_special="all") == [theirs.get_special_token("[INST]")]


def test_special_tokens_decode_to_their_names_or_are_left_out(ours: Tokenizer, theirs: Tekkenizer) -> None:
    draw = random.Random(0)
    for _ in range(300):
        ids = [draw.choice([draw.randrange(30), draw.randrange(theirs.n_words)]) for _ in range(draw.randrange(12))]
        assert ours.decode(ids) == theirs.decode(ids, SpecialTokenPolicy.KEEP)
    whole = [1, *theirs.encode("a 中文 b", False, False), 12, *theirs.encode("é", False, False), 2]
    assert ours.decode(whole, skip_special_tokens=True) == theirs.decode(whole, SpecialTokenPolicy.IGNORE)


def test_a_pickled_copy_and_a_folder_give_the_same(
    ours: Tokenizer, theirs: Tekkenizer, path: Path, tmp_path: Path
) -> None:
    text = "It's 12 o'clock, 中文 [INST]\r\n\r\n  x"
    expected = theirs.encode(text, bos=True, eos=True)
    (tmp_path / "tekken.json").symlink_to(path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<pad>"}')
    from_folder = Tokenizer.from_file(tmp_path)
    pad = theirs.get_special_token("<pad>")
    assert from_folder.encode(text, bos=True, eos=True) == [pad, *expected[1:]]
    assert from_folder.chat_template == "{{ messages[0].content }}"
    assert pickle.loads(pickle.dumps(ours)).encode(text, bos=True, eos=True) == expected


LISTED = [
    {"rank": i, "token_str": name, "is_control": i != 3} for i, name in enumerate(["<unk>", "<s>", "</s>", "é中"])
]
IMAGE = {"image_patch_size": 14, "max_image_size": 99}
SMALL: dict[str, dict[str, Any]] = {
    "version 3, no special tokens listed": {},
    "version 7, no special tokens listed": {"version": "v7"},
    "more special tokens than are named": {"default_num_special_tokens": 30, "default_vocab_size": 310},
    "all tokens used": {"default_vocab_size": 310},
    "only the bytes": {"default_vocab_size": 276},
    "version 11, listed": {
        "version": "v11",
        "special_tokens": LISTED,
        "multimodal": IMAGE,
    },
    "version 13, listed": {
        "version": "v13",
        "special_tokens": LISTED,
        "image": IMAGE,
    },
    "no ends among the special tokens": {"version": "v13", "special_tokens": []},
    "audio": {
        "version": "v13",
        "special_tokens": LISTED,
        "audio": {
            "sampling_rate": 16000,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
            "chunk_length_s": 30.0,
        },
    },
    "another pattern": {"pattern": r"\p{L}++|[^\p{L}]"},
    "a pattern of one alternative": {"pattern": r"[\s\S]{1,3}"},
}


@pytest.fixture(scope="module", params=sorted(SMALL))
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tekkenizer]:
    path = write(tmp_path_factory.mktemp("tekken"), small_file(**SMALL[request.param]))
    return Tokenizer.from_file(path), Tekkenizer.from_file(path)


@settings(max_examples=200, deadline=None)
@given(text=st.text(" \t\n\r'stThenor12é中文字😀.<>/[]INSTu", max_size=40))
def test_small_files_of_every_version(small: tuple[Tokenizer, Tekkenizer], text: str) -> None:
    ours, theirs = small
    assert ours.encode(text) == theirs.encode(text, bos=False, eos=False)
    ids = ours.encode(text)
    assert ours.decode(ids) == theirs.decode(ids)


def test_ends_of_small_files(small: tuple[Tokenizer, Tekkenizer]) -> None:
    ours, theirs = small
    assert ours.vocab_size == theirs.n_words
    assert ours.special_tokens == theirs._special_tokens_reverse_vocab
    for our_id, name in ((ours.bos_id, "<s>"), (ours.eos_id, "</s>")):
        assert our_id == theirs._special_tokens_reverse_vocab.get(name)
    assert [ours.decode([i]) for i in range(ours.vocab_size)] == theirs.vocab()


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "v4"},
        {"version": "v11"},
        {"version": "v13", "special_tokens": LISTED, "multimodal": IMAGE},
        {"version": "v13", "special_tokens": LISTED, "model_settings_builder": {}},
        {"special_tokens": [*LISTED, LISTED[0] | {"rank": 4}]},
        {"special_tokens": [{"rank": 0, "token_str": "<SPECIAL_7>", "is_control": True}]},
        {"default_num_special_tokens": 3, "default_vocab_size": 280},
        {"default_vocab_size": 311},
    ],
)
def test_what_mistral_common_refuses_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write(tmp_path, small_file(**changes))
    with pytest.raises((ValueError, AssertionError)):
        Tekkenizer.from_file(path)
    with pytest.raises(ValueError, match=r"tekken\.json: "):
        Tokenizer.from_file(path)
