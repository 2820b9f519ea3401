"""Tokenizers in GGUF files: what is read as llama.cpp reads it, what is written, and what is refused."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from bpe_llama import Tokenizer, _core
from bpe_llama._gguf.reader import read_tokenizer
from bpe_llama._gguf.token_types import CONTROL, NORMAL, USER_DEFINED, overlapping
from bpe_llama._gguf.writer import tokenizer_metadata
from tests.gguf_files import write_gguf
from tests.unit.loading.gguf_metadata import alphabet, byte_level, characters, read, sentencepiece

# ---- special tokens ----


def test_special_tokens_by_text_and_by_id(tmp_path: Path) -> None:
    base = byte_level()["tokenizer.ggml.tokens"]
    names = ["<|im_end|>", "<|eom_id|>", "</s>", "<|fim_pad|>", "<think>", "[PAD]", "<|channel|>"]
    types = [NORMAL] * 260 + [CONTROL] + [NORMAL] * 4 + [USER_DEFINED] + [CONTROL] * 2
    found = read(tmp_path, byte_level(tokens=base + names, token_type=types, padding_token_id=266))
    ids = {name: 261 + i for i, name in enumerate(names)}
    assert (found.core.pad_id, found.core.unk_id) == (266, None)
    assert found.end_ids == {260, *(ids[name] for name in ("<|im_end|>", "<|eom_id|>", "</s>", "<|fim_pad|>"))}
    # Those found by text are control tokens; gpt-oss's are shown, so they are text's.
    assert set(found.core.special_tokens) == {"<|endoftext|>", *names[:4], "[PAD]"}
    assert found.core.encode("<think><|channel|>") == [265, 267]
    stated = read(tmp_path, byte_level(tokens=base + names, token_type=types, eot_token_id=265, eom_token_id=5))
    assert {5, 265} <= stated.end_ids


def test_the_end_of_a_message_is_no_end_of_gpt_oss_or_gemma(tmp_path: Path) -> None:
    base = byte_level()["tokenizer.ggml.tokens"]
    names = ["<|return|>", "<|call|>", "<|end|>"]
    types = [NORMAL] * 260 + [CONTROL] * 4
    found = read(tmp_path, byte_level(tokens=base + names, token_type=types))
    assert found.end_ids == {260, 261, 262}
    assert found.core.encode("<|end|>") == [263]
    found = read(tmp_path, byte_level(tokens=[*base, "<|tool_response>", "</s>"], token_type=types[:-1]))
    assert found.end_ids == {260, 261}
    assert "</s>" not in found.core.added_tokens


def test_default_begin_and_end_of_files(tmp_path: Path) -> None:
    kinds = byte_level()["tokenizer.ggml.token_type"]
    silent = read(tmp_path, byte_level(eos_token_id=None))
    assert (silent.core.bos_id, silent.core.eos_id, silent.add_bos) == (None, 260, False)
    kinds[11] = CONTROL  # llama.cpp's default is Falcon's <|endoftext|>
    falcon = read(tmp_path, byte_level(eos_token_id=None, token_type=kinds))
    assert (falcon.core.bos_id, falcon.core.eos_id) == (11, 11)
    assert read(tmp_path, byte_level(pre="llama-bpe", bos_token_id=260)).add_bos
    assert not read(tmp_path, byte_level(pre="llama-bpe", bos_token_id=260, add_bos_token=False)).add_bos
    spm = read(tmp_path, sentencepiece(bos_token_id=None, eos_token_id=None))
    assert (spm.core.bos_id, spm.core.eos_id, spm.core.unk_id, spm.add_bos, spm.add_eos) == (1, 2, 0, True, False)


def test_named_chat_templates(tmp_path: Path) -> None:
    templates = {"default": "{{ a }}", "tool_use": "{{ b }}"}
    metadata = tokenizer_metadata(read(tmp_path, byte_level()).core, templates)
    assert metadata["tokenizer.chat_templates"] == ["tool_use"]
    assert read(tmp_path, metadata).chat_template == templates
    assert Tokenizer.from_gguf(tmp_path / "t.gguf").chat_template == templates
    assert read(tmp_path, byte_level() | {"tokenizer.chat_template": "x"}).chat_template == "x"
    assert read(tmp_path, byte_level()).chat_template is None


def test_phi_3_strips_white_space_after_its_tokens(tmp_path: Path) -> None:
    metadata = sentencepiece({"<|user|>": (0.0, CONTROL)})
    index = metadata["tokenizer.ggml.tokens"].index
    core = read(tmp_path, metadata | {"general.name": "Phi-3 mini"}).core
    assert core.encode("<|user|> \n a", allowed_special="all") == [index("<|user|>"), index("▁a")]
    core = read(tmp_path, metadata).core
    assert core.encode("<|user|> a", allowed_special="all") == [index("<|user|>"), index("▁"), index("▁a")]


def test_tokens_that_overlap() -> None:
    assert overlapping([">>TITLE<<", "<|endoftext|>"]) == (">>TITLE<<", "<|endoftext|>")
    assert overlapping(["  ", "   ", "\n", "\n\n", "<|a|>", "<|b|>", "aba"]) is None
    assert overlapping(["longer|", "|x"]) is None  # the first is the longer one, too


@given(st.lists(st.text("ab", min_size=1, max_size=6), unique=True, max_size=8))
def test_overlaps_are_those_of_the_definition(texts: list[str]) -> None:
    def differ(first: str, second: str) -> bool:
        shared = [n for n in range(1, len(first)) if second.startswith(first[-n:])]
        return len(second) >= len(first) and any(not (first + second[n:]).startswith(second) for n in shared)

    found = overlapping(texts)
    assert found is None or (differ(*found) and found[0] != found[1])
    if found is None:
        assert not any(differ(first, second) for first, second in itertools.permutations(texts, 2))


@pytest.mark.parametrize("texts", [["x" * 100_000], ["a" * n for n in range(2, 3000)]])
def test_comparing_tokens_has_a_limit(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="too many ways to compare"):
        overlapping(texts)


def test_tokens_that_overlap_are_named(tmp_path: Path) -> None:
    tokens = [*byte_level()["tokenizer.ggml.tokens"], "x-", "--y"]
    types = [NORMAL] * 260 + [CONTROL]
    with pytest.warns(UserWarning, match="the special tokens 'x-' and '--y' may overlap"):
        read(tmp_path, byte_level(tokens=tokens, token_type=[*types, USER_DEFINED, CONTROL]))
    with pytest.raises(ValueError, match="the user-defined tokens 'x-' and '--y' may overlap"):
        read(tmp_path, byte_level(tokens=tokens, token_type=[*types, USER_DEFINED, USER_DEFINED]))


# ---- SentencePiece ----


def test_text_after_a_user_defined_token_begins_with_a_space(tmp_path: Path) -> None:
    metadata = sentencepiece({"<u>": (0.0, USER_DEFINED), "▁▁": (-4.0, USER_DEFINED)})
    index = metadata["tokenizer.ggml.tokens"].index
    core = read(tmp_path, metadata).core
    assert core.encode("ab<u>ab") == [index("▁ab"), index("<u>"), index("▁ab")]
    assert core.encode("x  ") == [index("▁"), index("x"), index("▁▁")]
    core = read(tmp_path, metadata | {"tokenizer.ggml.add_space_prefix": False}).core
    assert core.encode("ab<u>ab") == [index("ab"), index("<u>"), index("ab")]
    # llama.cpp heeds this key for Unigram models only.
    core = read(tmp_path, metadata | {"tokenizer.ggml.remove_extra_whitespaces": True}).core
    assert core.encode("x  ") == [index("▁"), index("x"), index("▁▁")]


def test_a_sentencepiece_tokenizer_round_trips(tmp_path: Path) -> None:
    first = read(tmp_path, sentencepiece({"<u>": (0.0, USER_DEFINED)}, add_eos_token=True))
    metadata = tokenizer_metadata(first.core, add_bos=first.add_bos, add_eos=first.add_eos)
    written = write_gguf(tmp_path / "t.gguf", metadata)
    reader = gguf.GGUFReader(written)
    assert reader.fields["tokenizer.ggml.scores"].types[1] == gguf.GGUFValueType.FLOAT32
    assert reader.fields["tokenizer.ggml.token_type"].types[1] == gguf.GGUFValueType.INT32
    second = read_tokenizer(written)
    assert second.core.merges == first.core.merges
    for text in ("ab a  b<u>ab x語", "", " ab", "b▁a"):
        assert second.core.encode(text) == first.core.encode(text)
    assert (second.add_bos, second.add_eos, second.end_ids) == (True, True, first.end_ids)
    assert metadata["tokenizer.ggml.token_type"] == [
        *sentencepiece()["tokenizer.ggml.token_type"],
        USER_DEFINED,
    ]


def test_sentencepiece_tokenizers_that_gguf_cannot_hold(tmp_path: Path) -> None:
    core = read(tmp_path, sentencepiece()).core
    described = json.loads(core.to_huggingface())
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    other = described | {"normalizer": None, "pre_tokenizer": metaspace}
    with pytest.raises(ValueError, match=r"cannot split text as this SentencePiece .* pre_tokenizer is .*Metaspace"):
        tokenizer_metadata(_core.Tokenizer.build_from_huggingface(json.dumps(other).encode()))
    model = described["model"]
    fewer = described | {"model": model | {"merges": [pair for pair in model["merges"] if "".join(pair) != "ab"]}}
    with pytest.raises(ValueError, match="no scores give the merges of this tokenizer: 'ab'"):
        tokenizer_metadata(_core.Tokenizer.build_from_huggingface(json.dumps(fewer).encode()))


def test_a_vocabulary_over_characters_has_its_own_merges(tmp_path: Path) -> None:
    metadata = characters({"\n\n": (0.0, NORMAL), "<u>": (0.0, USER_DEFINED)}, pre=None)
    metadata["tokenizer.ggml.merges"] += ["\n \n"]
    tokens = metadata["tokenizer.ggml.tokens"]
    first = read(tmp_path, metadata)
    core = first.core

    def spelt(text: str) -> list[str]:
        return [tokens[i] for i in core.encode(text)]

    assert spelt("ab ab") == ["ab", "▁ab"]
    assert spelt("x\n\n\nb<u>b") == ["x", "\n\n", "\n", "b", "<u>", "b"]
    assert spelt("é") == ["<0xC3>", "<0xA9>"]
    assert core.decode(core.encode(" ab  é\n")) == " ab  é\n"
    assert (first.pre, first.add_bos, core.bos_id) == ("gemma4", True, 1)
    second = read(tmp_path, tokenizer_metadata(core, pre=first.pre))
    assert second.core.merges == core.merges
    assert second.core.encode("ab ab\n\n<u>é") == core.encode("ab ab\n\n<u>é")
    other = read(tmp_path, metadata | {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "sarvam-moe"})
    assert (other.pre, other.add_bos, other.core.encode("ab ab")) == ("sarvam-moe", False, core.encode("ab ab"))
    prefixed = read(tmp_path, sentencepiece()).core
    with pytest.raises(ValueError, match=r"pre is 'gemma4', for which llama\.cpp prepends no space to a text"):
        tokenizer_metadata(prefixed, pre="gemma4")


# ---- what is written only nearly, or not at all ----


@pytest.mark.parametrize(("pattern", "name"), [("cl100k", "dbrx"), ("o200k", "gpt-4o")])
def test_a_pattern_that_differs_in_llama_cpp_warns(pattern: str, name: str) -> None:
    tokenizer = Tokenizer.train_from_iterator(["abab"], vocab_size=257, pattern=pattern, progress=False)
    with pytest.warns(UserWarning, match=r"llama\.cpp encodes some texts differently"):
        assert tokenizer_metadata(tokenizer)["tokenizer.ggml.pre"] == name


def test_nfc_warns() -> None:
    described = json.loads(
        Tokenizer.train_from_iterator(["abab"], vocab_size=257, pattern="qwen2", progress=False).to_huggingface()
    )
    described["normalizer"] = {"type": "NFC"}
    with pytest.warns(UserWarning, match="does not normalize text to NFC"):
        tokenizer_metadata(_core.Tokenizer.build_from_huggingface(json.dumps(described).encode()))


@pytest.mark.parametrize(
    ("special", "plain", "message"),
    [
        (["<|channel|>", "<|start|>"], [], "it takes for text ['<|channel|>', '<|start|>']"),
        (["<|eot_id|>"], [], "it also ends generation at ['<|eot_id|>']"),
        ([], ["<|fim_prefix|>"], "it takes for special tokens ['<|fim_prefix|>']"),
        (["<|return|>", "<|call|>", "<|end|>"], [], "it takes for text ['<|end|>']; it also ends generation at"),
    ],
)
def test_a_token_that_llama_cpp_knows_by_its_text_warns(
    special: list[str], plain: list[str], message: str, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.train_from_iterator(
        ["abab"], vocab_size=258 + len(special), pattern="r50k", special_tokens=["</s>", *special], progress=False
    ).with_tokens(plain)
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        metadata = tokenizer_metadata(tokenizer)
    assert len(caught) == 1 and caught[0].filename == __file__
    again = read(tmp_path, metadata)  # as llama.cpp reads it
    assert again.core.special_tokens.keys() != tokenizer.special_tokens.keys() or again.end_ids != tokenizer.end_ids


def test_tokens_that_are_the_same_in_llama_cpp_do_not_warn() -> None:
    tokenizer = Tokenizer.train_from_iterator(
        ["abab"], vocab_size=259, pattern="r50k", special_tokens=["<|eot_id|>", "<|endoftext|>"], progress=False
    )
    assert tokenizer.eos_id == 258
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer_metadata(tokenizer, model_ends=[257])  # an end of the model, if not of the tokenizer


def test_a_token_without_merges_decides_the_name() -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    with pytest.raises(ValueError, match=r"ignore_merges is true, but .* token b'abc'"):
        tokenizer_metadata(Tokenizer.from_ranks(ranks, pattern="qwen2"))
    assert tokenizer_metadata(Tokenizer.from_ranks(ranks, pattern="llama3"))["tokenizer.ggml.pre"] == "llama-bpe"
    with pytest.raises(ValueError, match=r"pre is 'gpt-2'; expected a name of this tokenizer's pattern: llama-bpe"):
        tokenizer_metadata(Tokenizer.from_ranks(ranks, pattern="llama3"), pre="gpt-2")
    reached = ranks | {b"ab": 255, b"\xff": 257}
    assert tokenizer_metadata(Tokenizer.from_ranks(reached, pattern="qwen2"))["tokenizer.ggml.pre"] == "qwen2"


# ---- bad input ----


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (byte_level(pre="gpt-9"), r"tokenizer\.ggml\.pre is 'gpt-9'; expected one of default, llama-bpe"),
        (byte_level(pre="whitespace"), r"tokenizer\.ggml\.pre is 'whitespace'; expected one of"),
        (byte_level(pre="sarvam-moe"), 'no token is "▁", which stands for a space'),
        (characters(merges=["b b"]), r"tokenizer\.ggml\.merges\[0\] is 'b b', but 'bb' is not in"),
        (characters({"\n\n": (0.0, NORMAL)}), "several line breaks are a token that merges do not make"),
        (characters(token_type=[NORMAL] * 267), "there are 0 byte tokens: expected 256"),
        (byte_level(pre=7), r"tokenizer\.ggml\.pre is 7; expected one of"),
        (byte_level(model="t5"), r"tokenizer\.ggml\.model is 't5' \(Unigram\); expected 'gpt2'"),
        (byte_level(model="new"), r"tokenizer\.ggml\.model is 'new'; expected 'gpt2'"),
        (byte_level(model=None), r"tokenizer\.ggml\.model is None; expected 'gpt2'"),
        (byte_level(tokens=None), r"tokenizer\.ggml\.tokens is missing; expected a list of texts"),
        (byte_level(tokens=[1, 2]), r"tokenizer\.ggml\.tokens is \[1, 2\]; expected a list of texts"),
        (byte_level(tokens="abc"), r"tokenizer\.ggml\.tokens is 'abc'; expected a list of texts"),
        (byte_level(tokens=["a", "b", "a"]), r"tokenizer\.ggml\.tokens has 'a' twice, as 0 and 2"),
        (byte_level(merges=None), r"tokenizer\.ggml\.merges is missing; expected a list of texts"),
        (byte_level(merges=["s o", "q z"]), r"tokenizer\.ggml\.merges\[1\] is 'q z', but 'qz' is not in"),
        (byte_level(merges=["so"]), r"tokenizer\.ggml\.merges\[0\] is 'so', but '' is not in"),
        (byte_level(token_type=[1, 2]), r"tokenizer\.ggml\.token_type has 2 entries for 261 tokens"),
        (byte_level(token_type=[7] * 261), r"tokenizer\.ggml\.token_type\[0\] is 7; expected 1 to 6"),
        (byte_level(token_type=["x"] * 261), r"tokenizer\.ggml\.token_type\[0\] is 'x'; expected 1 to 6"),
        (byte_level(token_type=3), r"tokenizer\.ggml\.token_type is 3; expected a list of numbers"),
        (byte_level(eos_token_id=261), r"tokenizer\.ggml\.eos_token_id is 261; expected an id from 0 to 260"),
        (byte_level(bos_token_id=True), r"tokenizer\.ggml\.bos_token_id is True; expected an id"),
        (byte_level(eot_token_id="x"), r"tokenizer\.ggml\.eot_token_id is 'x'; expected an id"),
        (byte_level(padding_token_id=999), r"tokenizer\.ggml\.padding_token_id is 999; expected an id"),
        (byte_level(add_bos_token=1), r"tokenizer\.ggml\.add_bos_token is 1; expected true or false"),
        (byte_level() | {"tokenizer.chat_template.x": 1}, r"tokenizer\.chat_template\.x is 1; expected a text"),
        (
            byte_level(token_type=[NORMAL] * 258 + [CONTROL, NORMAL, CONTROL]),
            'merges make the special token 258 of its text, "some"',
        ),
        (
            byte_level(token_type=[NORMAL] * 259 + [USER_DEFINED, CONTROL]),
            'a merge names token 259, "Ġw", which is matched as a whole',
        ),
        (sentencepiece(scores=None), r"tokenizer\.ggml\.scores is missing; expected a list of numbers"),
        (sentencepiece(scores=["x"]), r"tokenizer\.ggml\.scores is \['x'\]; expected a list of numbers"),
        (sentencepiece(scores=[1.0]), r"tokenizer\.ggml\.scores has 1 entries for 266 tokens"),
        (sentencepiece(token_type=[1] * 266), "0 of 256 bytes"),
        (sentencepiece(add_space_prefix=1), r"tokenizer\.ggml\.add_space_prefix is 1; expected true or false"),
    ],
)
def test_bad_metadata_is_refused_by_name(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    path = write_gguf(tmp_path / "t.gguf", metadata)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.from_gguf(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    "single", [[], ["</s>"], ["A", "A"], ["A", "</s>", "</s>"]], ids=lambda single: "+".join(single)
)
def test_a_template_that_gguf_cannot_hold_is_refused(single: list[str], tmp_path: Path) -> None:
    described = json.loads(read(tmp_path, byte_level()).core.to_huggingface())
    text = {name: {"Sequence": {"id": name, "type_id": 0}} for name in "AB"}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    described["post_processor"] = {
        **{"type": "TemplateProcessing", "single": [text.get(name, end) for name in single]},
        **{"pair": list(text.values()), "special_tokens": {"</s>": {"id": "</s>", "ids": [260], "tokens": ["</s>"]}}},
    }
    core = _core.Tokenizer.build_from_huggingface(json.dumps(described).encode())
    with pytest.raises(ValueError, match=r"a GGUF file can add bos_id, .*post-processor gives \["):
        tokenizer_metadata(core)


def test_ends_that_a_tokenizer_lacks_are_not_written(tmp_path: Path) -> None:
    core = read(tmp_path, byte_level()).core
    with pytest.raises(ValueError, match="add_bos is True, but this tokenizer has no bos_id"):
        tokenizer_metadata(core, add_bos=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokenizer_metadata(core, add_eos=True)["tokenizer.ggml.add_eos_token"] is True


def test_numbers_newer_than_the_tables_of_llama_cpp(tmp_path: Path) -> None:
    """So a SmolLM of a GGUF file keeps U+11DE0 with the marks beside it, also one written from a tokenizer.json."""
    theirs = tokenizers.Tokenizer(
        tokenizers.models.BPE({token: i for i, token in enumerate([*alphabet(), "!ð"])}, [("!", "ð")])
    )
    steps = [tokenizers.pre_tokenizers.Digits(True), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    core = _core.Tokenizer.build_from_huggingface(theirs.to_str().encode())
    text, same = "!\U00011de01", "!  1 2é 34 !𝟘"
    assert core.encode(text) == theirs.encode(text).ids
    assert 256 not in core.encode(text)
    write_gguf(tmp_path / "t.gguf", tokenizer_metadata(core))
    read = Tokenizer.from_gguf(tmp_path / "t.gguf")
    assert (core.pattern_name, read.pattern_name) == ("smollm_digits", "smollm")
    assert 256 in read.encode(text)
    assert read.encode(same) == core.encode(same) == theirs.encode(same).ids
