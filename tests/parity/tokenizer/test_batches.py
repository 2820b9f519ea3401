"""``tok(...)`` gives the batches of transformers, with the defaults that a tokenizer's files name."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer
from transformers.tokenization_utils_base import TruncationStrategy

from bpe_llama import Tokenizer
from bpe_llama._loading.tokenizer_classes import CLASSES

Json = dict[str, Any]
PAD = {
    **{"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": 4, "pad_id": 5, "pad_type_id": 1},
    "pad_token": "<pad>",
}
CUT = {"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
BASE = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>"}
TWO = ["ab ab ab ab", "ab"]


def folder_of(folder: Path, config: Json, **sections: Any) -> Path:
    """Write a tokenizer of 256 bytes and one merge, with ``</s>`` as 257 and ``<pad>`` as 258."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    end, texts = {"SpecialToken": {"id": "</s>", "type_id": 0}}, {"A": 0, "B": 1}
    a, b = ({"Sequence": {"id": name, "type_id": type_id}} for name, type_id in texts.items())
    file = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 257 + i, "content": name, **flags} for i, name in enumerate(("</s>", "<pad>"))],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {
            **{"type": "TemplateProcessing", "single": [a, end], "pair": [a, end, b]},
            "special_tokens": {"</s>": {"id": "</s>", "ids": [257], "tokens": ["</s>"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            **{"type": "BPE", "vocab": {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))} | {"ab": 256}},
            "merges": [["a", "b"]],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(file | sections), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("config", "sections"),
    [
        (BASE, {}),
        (BASE, {"padding": PAD}),
        (BASE, {"truncation": CUT}),
        (BASE | {"padding_side": "right", "truncation_side": "right"}, {"padding": PAD, "truncation": CUT}),
        (BASE | {"padding_side": "left", "truncation_side": "left"}, {}),
        (BASE | {"padding_side": "left"}, {"padding": PAD | {"direction": "Right"}}),
        # A section of tokenizer.json may name the pad token, even one that is added then.
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, {"padding": PAD}),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, {"padding": PAD | {"pad_token": "[PAD]"}}),
        (BASE | {"model_max_length": 2}, {}),
        (BASE | {"max_len": 2}, {}),
        (BASE | {"model_max_length": None, "max_len": 2}, {}),
        (BASE | {"model_max_length": 10**30}, {}),
        (BASE | {"model_max_length": 1e30}, {}),
        (BASE | {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}, {}),
        (BASE | {"model_input_names": ["input_ids"]}, {}),
        (BASE | {"model_input_names": []}, {}),
        (BASE | {"eos_token": ""}, {}),
    ],
)
def test_the_files_name_the_defaults(config: Json, sections: Json, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, config, **sections)
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(folder)
    ours.save(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (ours.eos_id, ours.pad_id) == (theirs.eos_token_id, theirs.pad_token_id)
    cuts = {"max_length": 3, "truncation": True}
    calls: list[Json] = [{"text": TWO, "padding": theirs.pad_token is not None}, {"text": TWO, **cuts}]
    if "model_max_length" in config or "max_len" in config:
        calls += [{"text": TWO, "truncation": True, "padding": True, "add_special_tokens": False}]
    for call in calls:
        text, options = call["text"], {name: value for name, value in call.items() if name != "text"}
        expected = dict(theirs(text, **options))
        if options.get("truncation") and "max_length" not in options and theirs.model_max_length > 10**20:
            with pytest.warns(UserWarning, match="cuts nothing"):
                assert ours(text, **options) == expected
            continue
        assert ours(text, **options) == expected
        assert Tokenizer.from_file(tmp_path / "saved")(text, **options) == expected
        assert dict(again(text, **options)) == expected


@pytest.mark.filterwarnings("ignore:.*in its place")
@pytest.mark.parametrize("sections", [{}, {"padding": PAD}, {"padding": PAD | {"direction": "Right"}}])
@pytest.mark.parametrize("name", [*CLASSES, "LlamaTokenizerFast", "GemmaTokenizer", "CodeLlamaTokenizer"])
def test_a_class_names_the_defaults(name: str, sections: Json, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"tokenizer_class": name}, **sections)
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(folder)
    settings = ours._settings
    assert (settings.padding_side, settings.truncation_side) == (theirs.padding_side, theirs.truncation_side)
    assert list(settings.model_input_names) == theirs.model_input_names
    if name in CLASSES:
        assert ours.pad_id == theirs.pad_token_id


def test_an_empty_text_is_no_second_one_beside_a_single_text(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, BASE)
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(folder)
    for texts in (("ab", ""), ("ab", None), ("", "ab"), ("", ""), (["ab"], [""]), (["", "a"], ["", ""])):
        assert ours(*texts, return_token_type_ids=True) == dict(theirs(*texts, return_token_type_ids=True))
    for wrong in (("ab", ["ab"]), (["ab"], "ab"), (["ab"], "")):
        for load in (ours, theirs):
            with pytest.raises(TypeError):
                load(*wrong)


OPTIONS: list[Json] = [
    {"padding": True, "pad_to_multiple_of": 3},
    {"padding": True, "truncation": True, "max_length": 4, "pad_to_multiple_of": 2},
    {"padding": True, "truncation": True, "max_length": 3, "pad_to_multiple_of": 2},
    {"padding": "max_length", "truncation": "only_first", "max_length": 3, "pad_to_multiple_of": 2},
    {"padding": "max_length", "max_length": 3, "pad_to_multiple_of": 2},
    {"truncation": True, "max_length": 3, "pad_to_multiple_of": 2},
    {"padding": True, "max_length": 2},
    {"padding": "max_length", "max_length": 2},
    {"max_length": 2, "padding": "do_not_pad"},
    {"truncation": "only_second", "max_length": 2},
    {"truncation": True, "max_length": "3"},
    {"truncation": True, "max_length": 2.0},
    {"truncation": True, "max_length": -1},
    {"padding": True, "pad_to_multiple_of": 2.5},
    *({"padding": value} for value in (None, 0, 1, "left")),
    *({"truncation": value} for value in (0, 1, "max_length")),
    {"return_tensors": "tf"},
    {"padding_side": "up", "padding": True},
]


@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_that_transformers_refuses_are_refused(options: Json, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, BASE)
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(folder)
    try:
        expected = dict(theirs(TWO, **options))
    except Exception:  # tokenizers raises plain ones
        names = "|".join(options)
        with pytest.raises((TypeError, ValueError), match=rf"({names}) (is|must be) "):
            ours(TWO, **options)
    else:
        assert ours(TWO, **options) == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pad_id": -1}, ValueError, r"pad_id must be an id from 0 to 2\*\*32 - 1, got -1"),
        ({"pad_id": 10**30}, ValueError, r"pad_id must be an id from 0 to 2\*\*32 - 1, got 10{30}"),
        ({"pad_id": "0"}, TypeError, "pad_id must be an int, got '0'"),
        ({"max_length": "3"}, TypeError, "max_length must be an int, got '3'"),
        ({"max_length": True}, TypeError, "max_length must be an int, got True"),
        ({"max_length": 0}, ValueError, "max_length must be at least 1, got 0"),
        ({"pad_to_multiple_of": 0}, ValueError, "pad_to_multiple_of must be at least 1, got 0"),
    ],
)
def test_a_wrong_option_is_named(options: Json, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        Tokenizer.from_file(folder_of(tmp_path, BASE))(TWO, padding=True, **options)


def test_numpy_integers_are_lengths(tmp_path: Path) -> None:
    tok = Tokenizer.from_file(folder_of(tmp_path, BASE))
    assert tok(TWO, truncation=True, max_length=np.int64(2)) == tok(TWO, truncation=True, max_length=2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("model_max_length", value) for value in ("3", float("nan"), 2.5, -1, True, [3])),
        *(("padding_side", value) for value in (None, "up")),
        *(("truncation_side", value) for value in (None, "Left")),
        *(("model_input_names", value) for value in (None, "input_ids", [3])),
        *(("split_special_tokens", value) for value in (True,)),
        *(("extra_special_tokens", value) for value in ("<x>", ["<x>", 3])),
        *(("eos_token", value) for value in (3, ["</s>"])),
        ("clean_up_tokenization_spaces", "yes"),
        ("post_processor", 3),
    ],
)
def test_a_wrong_field_of_the_config_is_named(field: str, value: Any, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, BASE | {field: value})
    shown = 3 if value == ["<x>", 3] else value
    with pytest.raises(ValueError, match=re.escape(f"tokenizer_config.json: {field} is {shown!r}")) as caught:
        Tokenizer.from_file(folder)
    assert str(folder) in str(caught.value)


def test_a_clean_up_that_spoils_text_is_refused(tmp_path: Path) -> None:
    forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    config = BASE | {"clean_up_tokenization_spaces": True}
    ours, theirs = (load(folder_of(tmp_path, config)) for load in (Tokenizer.from_file, AutoTokenizer.from_pretrained))
    ids = ours.encode("ab . ab")
    assert ours.decode(ids) == theirs.decode(ids) == "ab . ab"
    with pytest.raises(ValueError, match=f"{forced} is True, which is not supported"):
        Tokenizer.from_file(folder_of(tmp_path, config | {forced: True}))


@pytest.mark.parametrize("single", [[], ["</s>"], ["A", "A"]], ids=str)
def test_a_template_of_any_form(single: list[str], tmp_path: Path) -> None:
    folder = folder_of(tmp_path, BASE)
    file = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    end, a = {"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    file["post_processor"]["single"] = [a if name == "A" else end for name in single]
    (folder / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(folder)
    for texts in (("ab",), ("ab", "ba"), ("",)):
        for options in ({}, {"return_offsets_mapping": True}, {"truncation": True, "max_length": 2}):
            assert ours(*texts, **options) == dict(theirs(*texts, **options))
    expected = theirs("ab")["input_ids"]
    assert ours("ab", eos=True)["input_ids"] == (expected if single == ["</s>"] else [*expected, 257])


@pytest.mark.filterwarnings("ignore:`max_length` is ignored", "ignore:truncation without max_length")
@pytest.mark.parametrize(
    ("single", "pair"), [("EAE", "EAEEBE"), ("A", "AB"), ("EA", "EAEB"), ("AE", "BEA")], ids=lambda items: items
)
def test_random_options_give_the_same_batches(single: str, pair: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, BASE)
    file = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    items = {name: {"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")}
    items["E"] = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    file["post_processor"] |= {"single": [items[name] for name in single], "pair": [items[name] for name in pair]}
    (folder / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(folder)
    draw = random.Random(single)
    masks = dict.fromkeys(("offsets_mapping", "special_tokens_mask", "token_type_ids"), True)
    compared = 0
    for _ in range(400):
        first, second = ("".join(draw.choices("ab é\n", k=draw.randrange(9))) for _ in "AB")
        texts: list[Any] = draw.choice([[first], [first, second], [[first, "ab"]], [[first, "ab"], [second, ""]]])
        options = {
            "truncation": draw.choice([True, False, None, "only_first", "only_second", *TruncationStrategy]),
            "max_length": draw.choice([None, 1, 2, 3, 4, 5, 6, 8]),
            "padding": draw.choice([False, True, "max_length"]),
            "padding_side": draw.choice([None, "left", "right"]),
            "pad_to_multiple_of": draw.choice([None, None, 2, 4]),
            "add_special_tokens": draw.choice([True, True, False]),
            **{f"return_{name}": value for name, value in masks.items()},
        }
        theirs.truncation_side = draw.choice(["left", "right"])
        try:
            got = ours(*texts, **options, truncation_side=theirs.truncation_side)
        except ValueError as error:
            if "special tokens alone" in str(error) or "there is no max_length" in str(error):
                continue  # transformers does not truncate or pad then
            with pytest.raises(Exception):  # noqa: B017 -- tokenizers raises plain ones
                theirs(*texts, **options)
            continue
        assert got == dict(theirs(*texts, **options)), (texts, options)
        compared += 1
    assert compared > 200
