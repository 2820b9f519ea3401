"""A tekken.json that is damaged or inconsistent is refused, by the name of its field."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bpe_llama import Tokenizer

Content = dict[str, Any]
TOKENS = [*(bytes([byte]) for byte in range(256)), b"ab", b"abc"]


def content(**config: Any) -> Content:
    """Return the content of a file of 258 ordinary tokens and 25 special ones."""
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(TOKENS)
    ]
    stated = {"pattern": r"\w+|\W", "num_vocab_tokens": 258, "default_vocab_size": 283, "version": "v3"}
    return {"config": stated | {"default_num_special_tokens": 25} | config, "vocab": vocab}


def write(folder: Path, stated: object) -> Path:
    path = folder / "tekken.json"
    path.write_text(json.dumps(stated), encoding="utf-8")
    return path


def test_a_file_is_read_whatever_its_name_and_the_order_of_its_keys(tmp_path: Path) -> None:
    path = write(tmp_path, dict(reversed(content().items()))).rename(tmp_path / "mistral.json")
    tok = Tokenizer.from_file(path)
    assert tok.encode("abc ", bos=True, eos=True) == [1, 25 + 257, 25 + 32, 2]
    assert tok.special_tokens["<SPECIAL_24>"] == 24
    assert tok.vocab_size == 283


def test_a_pattern_like_a_pattern_name_is_a_regex(tmp_path: Path) -> None:
    tok = Tokenizer.from_file(write(tmp_path, content(pattern="abc")))
    assert tok.encode("abcabc") == [25 + 257, 25 + 257]
    assert Tokenizer.from_file(write(tmp_path, content(pattern="cl100k"))).pattern_name is None


def changed(change: Callable[[Content], object]) -> Content:
    stated = content()
    change(stated)
    return stated


def entry(place: int, /, **fields: Any) -> Callable[[Content], object]:
    return lambda stated: stated["vocab"][place].update(fields)


def special(*names: Any) -> list[Content]:
    return [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)]


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ([], "the file is a list; expected an object"),
        ({"config": {}, "vocab": []}, "config.pattern is None; expected a regex"),
        (content() | {"merges": []}, "the file has the unknown field 'merges'; expected only audio, config, image"),
        (content(dropout=0.1), "config has the unknown field 'dropout'; expected only default_num"),
        (content(version="v4"), "config.version is 'v4'; expected one of v1, v2, v3, v7, v11, v13, v15"),
        (content(version=None), "config.version is None; expected one of v1"),
        (content(version="v11"), "special_tokens is missing; a file of version v11 lists them"),
        (
            content(version="v13") | {"special_tokens": [], "multimodal": {"image_patch_size": 14}},
            "multimodal occurs in a file of version v13; expected the field image",
        ),
        (
            content(version="v13") | {"special_tokens": [], "model_settings_builder": {}},
            "model_settings_builder occurs in a file of version v13; expected v15 or later",
        ),
        (content() | {"audio": 3}, "audio is a int; expected an object"),
        (content(num_vocab_tokens=257), "config.num_vocab_tokens is 257, but vocab has 258 tokens"),
        (content(default_vocab_size=284), "which leaves 259 ordinary tokens; expected 256 to 258"),
        (content(default_vocab_size=280), "which leaves 255 ordinary tokens; expected 256 to 258"),
        (content(default_vocab_size="283"), "config.default_vocab_size is '283'; expected a number"),
        (content(default_vocab_size=True), "config.default_vocab_size is True; expected a number"),
        (content(default_num_special_tokens=10**15), "config.default_num_special_tokens is 1000000000000000; expected"),
        (
            content(default_num_special_tokens=2**21 - 258, default_vocab_size=2**21),
            "config.default_num_special_tokens is 2096894; expected a number from 0 to 65536",
        ),
        (
            content(default_num_special_tokens=19, default_vocab_size=277),
            "config.default_num_special_tokens is 19, but there are 20 special tokens",
        ),
        (content() | {"vocab": {}}, "vocab is a dict; expected a list of tokens"),
        (changed(entry(7, rank=8)), "vocab[7].rank is 8; expected 7, its place in the list"),
        (changed(entry(7, rank=7.0)), "vocab[7].rank is 7.0; expected 7"),
        (changed(entry(7, score=1)), "vocab[7] has ['rank', 'score', 'token_bytes', 'token_str']; expected the fields"),
        (
            changed(entry(7, token_bytes="Cw==")),
            r"vocab[7].token_bytes is b'\x0b'; expected the byte 7",
        ),
        (changed(entry(257, token_bytes="YWI=")), "vocab[257].token_bytes is b'ab', as of vocab[256]"),
        (changed(entry(257, token_bytes="YW!=")), "vocab[257].token_bytes is 'YW!=': "),
        (changed(entry(257, token_bytes=None)), "vocab[257].token_bytes is None: "),
        (content() | {"special_tokens": {}}, "special_tokens is a dict; expected a list of tokens"),
        (
            content() | {"special_tokens": special("<s>", "a", "<s>")},
            "'<s>' is both token 0 and token 2",
        ),
        (content() | {"special_tokens": special("<SPECIAL_3>")}, "'<SPECIAL_3>' is both token 0 and token 3"),
        (content() | {"special_tokens": special("<s>", None)}, "special_tokens[1].token_str is None; expected"),
        (content() | {"special_tokens": [{"rank": 1, "token_str": "<s>"}]}, "special_tokens[0].rank is 1; expected 0"),
        (
            content() | {"special_tokens": [{"rank": 0, "lstrip": True}]},
            "[0] has the unknown field 'lstrip'",
        ),
        (content(pattern="("), 'pattern "(?:()" is not a valid regex'),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, stated: object, message: str) -> None:
    from bpe_llama._loading import tekken

    path = write(tmp_path, stated)
    with pytest.raises(ValueError) as caught:
        tekken.read_tokenizer(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_long_values_are_shortened(tmp_path: Path) -> None:
    for stated in (content(pattern=["a" * 100_000]), content(pattern="(" * 100_000), content(version="v" * 100_000)):
        with pytest.raises(ValueError) as caught:
            Tokenizer.from_file(write(tmp_path, stated))
        assert len(str(caught.value)) < 2000


def test_invalid_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    path.write_text('{"config": {"pattern": ')
    with pytest.raises(ValueError, match=r"tekken\.json: not valid JSON"):
        Tokenizer.from_file(path)
    path.write_bytes(b'{"config": "\xff"}')
    with pytest.raises(ValueError, match=r"tekken\.json: not UTF-8"):
        Tokenizer.from_file(path)
