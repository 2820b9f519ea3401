"""Pre-tokenizers of GGUF files: split as llama.cpp splits, read and written by name."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
import tokenizers

from bpe_llama import Tokenizer, _core
from bpe_llama._gguf.pre_tokenizers import NEAREST, PRE_TOKENIZERS
from bpe_llama._gguf.token_types import NORMAL
from bpe_llama._gguf.writer import tokenizer_metadata
from tests.gguf_files import write_gguf
from tests.unit.loading.gguf_metadata import TEXTS, alphabet, byte_level, read

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/llama_cpp_pieces.json").read_text(encoding="utf-8"))


def split(steps: tuple[str, ...], text: str) -> list[str]:
    pieces = [text]
    for step in steps:
        pieces = [piece for part in pieces for piece in _core.split_pieces(step, part)]
    return pieces


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_text_is_split_as_in_llama_cpp(name: str) -> None:
    pre, expected = PRE_TOKENIZERS[name], GOLDEN["names"][name]
    assert (pre.ignore_merges, pre.add_bos) == (expected["ignore_merges"], expected["add_bos"])
    for text, lengths in zip(GOLDEN["texts"], GOLDEN["splits"][expected["splits"]], strict=True):
        assert [len(piece) for piece in split(pre.patterns, text)] == lengths, text


def test_the_table_has_the_names_of_the_golden_file() -> None:
    assert set(PRE_TOKENIZERS) == set(GOLDEN["names"])
    assert {name for name, _ in NEAREST.values()} <= set(PRE_TOKENIZERS)


_LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_SMALL = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS}*{_SMALL}+|[^\r\n\p{{L}}\p{{N}}]?{_LETTERS}+{_SMALL}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("regex", "pre", "warning"), [(_TEKKEN, "tekken", "a capital letter"), (_QWEN3_5, "qwen35", "")]
)
def test_a_published_pattern_of_a_tokenizer_json_has_its_name(
    tmp_path: Path, regex: str, pre: str, warning: str
) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"He": 256, b" a": 257}
    file = json.loads(Tokenizer.from_ranks(ranks, "llama3").to_huggingface())
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": regex}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    tok = Tokenizer.from_file(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metadata = tokenizer_metadata(tok)
    assert metadata["tokenizer.ggml.pre"] == pre
    assert [warning in str(one.message) for one in caught] == [True] * bool(warning)
    write_gguf(tmp_path / "t.gguf", metadata)
    again = Tokenizer.from_gguf(tmp_path / "t.gguf")
    for text in ("Hello a 123 it's 'LL", "e\u0301\u0301 \n\n a/b  HeLLo", "한국어 각"):
        assert again.encode(text) == tok.encode(text)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_name_is_read_and_written_back(tmp_path: Path, name: str) -> None:
    first = read(tmp_path, byte_level(pre=name, bos_token_id=260, add_eos_token=True))
    assert first.pre == name
    again = tokenizer_metadata(first.core, add_bos=first.add_bos, add_eos=first.add_eos, pre=first.pre)
    assert again["tokenizer.ggml.pre"] == name
    second = read(tmp_path, again)
    assert (second.add_bos, second.add_eos, second.pre) == (PRE_TOKENIZERS[name].add_bos, True, name)
    assert (second.core.bos_id, second.core.eos_id, second.end_ids) == (260, 260, frozenset({260}))
    for text in TEXTS:
        assert second.core.encode(text) == first.core.encode(text)
    Tokenizer(first.core).save(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*TEXTS, "HeLLo wORLD ÉCOLE, 中文abc カナ. x1y22z333 it's I'LL", "日本語テスト한국어 ไทย\r\n٣٤"]:
        assert theirs.encode(text, add_special_tokens=False).ids == first.core.encode(text), text
    # Without a name, one that means the same is taken.
    alike = PRE_TOKENIZERS[tokenizer_metadata(first.core)["tokenizer.ggml.pre"]]
    assert alike.patterns == PRE_TOKENIZERS[name].patterns


def test_a_missing_pre_is_llama_cpps_default_with_a_warning(tmp_path: Path) -> None:
    stated = read(tmp_path, byte_level(pre="default"))
    path = write_gguf(tmp_path / "t.gguf", byte_level(pre=None))
    with pytest.warns(UserWarning, match=rf"{re.escape(str(path))}: tokenizer\.ggml\.pre is missing"):
        loaded = Tokenizer.from_file(path)
    assert loaded.pattern == stated.core.pattern
    assert loaded.encode(TEXTS[0]) == stated.core.encode(TEXTS[0])


def test_text_never_becomes_a_token_outside_the_byte_alphabet(tmp_path: Path) -> None:
    tokens = byte_level()["tokenizer.ggml.tokens"]
    core = read(tmp_path, byte_level(pre="llama-bpe", tokens=[*tokens, "語"], token_type=[NORMAL] * 262)).core
    assert core.encode("語") == [*"語".encode()]
    assert core.decode([261]) == "語"


def test_the_first_of_a_repeated_merge_counts(tmp_path: Path) -> None:
    tokens = [*alphabet(), "ab", "bc"]
    metadata = byte_level(tokens=tokens, token_type=None, eos_token_id=None)
    once = read(tmp_path, metadata | {"tokenizer.ggml.merges": ["a b", "b c", "a b"]}).core
    assert once.encode("abc") == [256, tokens.index("c")]
