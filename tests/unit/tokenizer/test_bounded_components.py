"""Components of a tokenizer.json whose cost is out of proportion to the text: errors in bounded time and memory."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from bpe_llama import Tokenizer
from tests.unit.tokenizer.described import BYTE_LEVEL, described

OUTER = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None}


def replace(old: dict[str, str], new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": old, "content": new}


DOUBLE = replace({"String": "a"}, "aa")


def loaded(folder: Path, **parts: Any) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(OUTER | described({"String": "_"}, ["l", "o"], ({"content": "<s>"},), **parts)))
    return Tokenizer.from_file(path)


def normalizers(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"normalizer": {"type": "Sequence", "normalizers": steps}}


def pre_tokenizers(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


@pytest.mark.parametrize(
    ("parts", "component"),
    [
        (normalizers(*[DOUBLE] * 40), "normalizer"),
        (normalizers(replace({"String": "a"}, "b" * 1_000_000)), "normalizer"),
        (normalizers(*[replace({"Regex": "(?=a)"}, "a")] * 40), "normalizer"),
        (normalizers(*[{"type": "ByteLevel"}] * 40), "normalizer"),
        (pre_tokenizers(*[BYTE_LEVEL] * 40), "pre_tokenizer"),
    ],
)
def test_a_text_that_components_lengthen(parts: dict[str, Any], component: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"the {component} of this tokenizer makes \d+ bytes or more of"):
        loaded(tmp_path, **parts).encode("xaé" * 10_000)


def test_rules_that_lengthen_each_letter_stop_before_they_take_the_memory(tmp_path: Path) -> None:
    """Of one rule, `a` to a megabyte: 20,000 letters would take 320 GB."""
    units = [0] * 256  # of the double-array trie: 0 -> `a` -> the value 0
    units[0], units[0x60], units[0x62] = 1 << 10, 0x61 | 1 << 8 | 2 << 10, 1 << 31
    rules = struct.pack("<I256I", 1024, *units) + b"b" * 1_000_000 + b"\0"
    step = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(rules).decode()}
    tok = loaded(tmp_path, **normalizers(step))
    with pytest.raises(ValueError, match=r"the normalizer of this tokenizer makes \d+ bytes or more of 20000"):
        tok.encode("a" * 20_000)


def test_tokens_that_a_decoder_lengthens(tmp_path: Path) -> None:
    for steps in ([*[DOUBLE] * 40, BYTE_LEVEL], [BYTE_LEVEL, replace({"String": "a"}, "b" * 1_000_000)]):
        tok = loaded(tmp_path, decoder={"type": "Sequence", "decoders": steps})
        with pytest.raises(ValueError, match="the decoder of this tokenizer makes"):
            tok.decode(tok.encode("xa" * 10_000))


def test_what_published_normalizers_do_is_no_growth(tmp_path: Path) -> None:
    """NFKD makes 18 characters of one, and a prefix is put before short texts."""
    tok = loaded(tmp_path, **normalizers({"type": "NFKD"}, {"type": "Prepend", "prepend": "_" * 1000}))
    assert len(tok.encode("\ufdfa" * 1000)) == 1000 + 33 * 1000
    assert len(tok.encode("a")) == 1001


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (normalizers(*[DOUBLE] * 1001), "normalizer has 1001 steps; expected at most 1000"),
        (pre_tokenizers(*[BYTE_LEVEL] * 1001), "pre_tokenizer has 1001 steps"),
        (normalizers(*[normalizers()["normalizer"]] * 1001), "normalizer has 1001 steps"),
        (pre_tokenizers(pre_tokenizers(*[BYTE_LEVEL] * 1000)["pre_tokenizer"]), "pre_tokenizer has 1001 steps"),
        ({"decoder": {"type": "Sequence", "decoders": [DOUBLE] * 1001}}, "decoder has 1001 steps"),
        ({"post_processor": {"type": "Sequence", "processors": [BYTE_LEVEL] * 1001}}, "post_processor has 1001 steps"),
        (normalizers(replace({"Regex": "(?i)" + "k" * 20_000}, "")), "a regex has 20004 bytes; expected at most 16384"),
    ],
)
def test_components_that_are_too_many_or_too_long(parts: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path, **parts)


def test_a_component_of_too_much_json_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    """59 MB of empty sequences became values of 1.4 GB, in 5 seconds."""
    steps = [{"type": "Sequence", "pretokenizers": [{}] * 1_500_000}]
    with pytest.raises(ValueError, match=r"pre_tokenizer has \d{7} bytes; expected at most 4194304"):
        loaded(tmp_path, **pre_tokenizers(*steps))


def test_a_template_of_too_many_items(tmp_path: Path) -> None:
    text, special = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}
    for single, ids in (([text] * 5000, [257]), ([text, special, special], [257] * 3000)):
        tokens = {"<s>": {"id": "<s>", "ids": ids, "tokens": ["<s>"] * len(ids)}}
        template = {"type": "TemplateProcessing", "single": single, "pair": [text], "special_tokens": tokens}
        with pytest.raises(ValueError, match=r"post_processor\.single has \d+ items or more; expected at most 4096"):
            loaded(tmp_path, post_processor=template)


@pytest.mark.parametrize("field", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_a_long_text_beside_each_character(field: str, tmp_path: Path) -> None:
    model = described({"String": "_"}, ["l", "o"])["model"] | {field: "#" * 1025}
    with pytest.raises(ValueError, match=rf"model\.{field} has 1025 bytes; expected at most 1024"):
        loaded(tmp_path, model=model)


def test_a_search_that_tries_a_long_match_from_each_character(tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(?:a|b)+c"}, "behavior": "Isolated", "invert": False}
    tok = loaded(tmp_path, **pre_tokenizers(split, BYTE_LEVEL))
    assert tok.decode(tok.encode("a" * 5_000 + "c")) == "a" * 5_000 + "c"
    with pytest.raises(ValueError, match="gave up on the text behind byte 0: retry-limit-in-search over"):
        tok.encode("a" * 40_000)
