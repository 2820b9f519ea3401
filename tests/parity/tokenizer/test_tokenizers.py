"""Ids equal those of Hugging Face's tokenizers: the same tokenizer.json read by both, whoever wrote it."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from bench import data
from bench.published import PUBLISHED, first_difference
from bpe_llama import Tokenizer, _core

SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>"]


@dataclass
class Pair:
    """The same tokenizer, loaded by us and by tokenizers."""

    ours: Tokenizer
    theirs: tokenizers.Tokenizer

    def difference(self, text: str) -> str:
        ours = self.ours.encode(text, allowed_special="all")  # tokenizers has no other way
        return first_difference(ours, self.theirs.encode(text, add_special_tokens=False).ids)


def _saved_by_us(tokenizer: Tokenizer, folder: Path) -> Pair:
    path = folder / "tokenizer.json"
    tokenizer.save(path)
    return Pair(Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path)))


def _trained_by_us(pattern: str) -> Callable[..., Pair]:
    def make(folder: Path, texts: dict[str, str], _: Any) -> Pair:
        documents = [text[:200_000] for text in texts.values()]
        trained = Tokenizer.train_from_iterator(documents, vocab_size=3000, pattern=pattern, special_tokens=SPECIALS)
        return _saved_by_us(trained, folder)

    return make


def _published(name: str) -> Callable[..., Pair]:
    def make(folder: Path, _: Any, real: Callable[..., Any]) -> Pair:
        known = PUBLISHED[name]
        path = real(lambda: known.path)
        loaded = Tokenizer.from_tiktoken(path, pattern=known.pattern, special_tokens=known.special_tokens)
        return _saved_by_us(loaded, folder)

    return make


def _trained_by_tokenizers(pre_tokenizer: Any, **model: Any) -> Callable[..., Pair]:
    def make(folder: Path, texts: dict[str, str], _: Any) -> Pair:
        theirs = tokenizers.Tokenizer(models.BPE(**model))
        theirs.pre_tokenizer = pre_tokenizer
        theirs.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=2000, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        )
        theirs.train_from_iterator([text[:200_000] for text in texts.values()], trainer)
        theirs.add_tokens([tokenizers.AddedToken("<|word|>", single_word=True)])
        theirs.add_tokens([tokenizers.AddedToken("<|strip|>", lstrip=True, rstrip=True)])
        path = folder / "tokenizer.json"
        theirs.save(str(path))
        return Pair(Tokenizer.from_huggingface(path), tokenizers.Tokenizer.from_file(str(path)))

    return make


def _smollm2(folder: Path, _: Any, real: Callable[..., Any]) -> Pair:
    """Return SmolLM2's tokenizer: ours from the GGUF, theirs assembled as its published tokenizer.json is."""
    path = real(data.smollm2_gguf)
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    theirs = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    theirs.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    theirs.add_special_tokens(
        [token for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    )
    return Pair(Tokenizer.from_gguf(path), theirs)


_BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_SPLIT = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(PUBLISHED["llama3"].regex), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
CASES: dict[str, Callable[..., Pair]] = {
    **{
        f"trained by us, {pattern}": _trained_by_us(pattern)
        for pattern in ("r50k", "cl100k", "llama3", "o200k", "qwen2")
    },
    "trained by us, own regex": _trained_by_us(r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"),
    **{f"published, {name}": _published(name) for name in ("r50k", "cl100k", "llama3", "o200k", "qwen2")},
    "trained by tokenizers, ByteLevel": _trained_by_tokenizers(_BYTE_LEVEL),
    "trained by tokenizers, Split": _trained_by_tokenizers(_SPLIT),
    "trained by tokenizers, ignore_merges": _trained_by_tokenizers(_SPLIT, ignore_merges=True),
    "SmolLM2": _smollm2,
}


@pytest.fixture(scope="module", params=sorted(CASES))
def pair(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    texts: dict[str, str],
    real: Callable[..., Any],
) -> Pair:
    return CASES[request.param](tmp_path_factory.mktemp("tokenizer"), texts, real)


def test_the_first_line_of_a_merges_txt_is_no_merge() -> None:
    vocab = {token: i for i, token in enumerate(["a", "b", "ab", "abb", "#version:", "0.2"])}
    for merges in (["#version: 0.2", "a b", "ab b"], ["a b", "#versions of it", "ab b"]):
        file = json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": vocab, "merges": merges}})
        theirs = tokenizers.Tokenizer.from_str(file)
        ours = _core.Tokenizer.build_from_huggingface(file.encode())
        assert ours.encode("aabbb") == theirs.encode("aabbb").ids == [0, 3, 1]


@pytest.mark.parametrize("kind", data.KINDS)
def test_real_text(pair: Pair, texts: dict[str, str], kind: str) -> None:
    text = texts[kind][:250_000]
    assert pair.difference(text) == "equal"


def test_adversarial_text(pair: Pair, adversarial: dict[str, str]) -> None:
    differences = {}
    for name, text in adversarial.items():
        if name == "lone_surrogates":  # tokenizers refuses them
            continue
        sample = text[:25_000]
        lacking = {byte for byte in range(256) if pair.ours.token_to_id(bytes([byte])) is None}
        if lacking & set(sample.encode()):  # tokenizers drops a byte without a token; we refuse to
            with pytest.raises(ValueError, match=r"byte 0x[0-9A-F]{2} has no token"):
                pair.ours.encode(sample)
        else:
            differences[name] = pair.difference(sample)
    assert {name: found for name, found in differences.items() if found != "equal"} == {}


def test_added_tokens_in_text(pair: Pair, texts: dict[str, str]) -> None:
    draw = random.Random(4)
    added = [token.content for token in pair.theirs.get_added_tokens_decoder().values()]
    words = texts["prose"][:20_000].split(" ")
    for _ in range(500):
        words.insert(draw.randrange(len(words)), draw.choice([*added, added[0][:-1], added[-1] * 2]))
    assert pair.difference(" ".join(words)) == "equal"
    assert pair.difference("".join(words)) == "equal"
    assert pair.difference("\n".join(words)) == "equal"


def test_batches(pair: Pair, texts: dict[str, str]) -> None:
    lines = texts["multilingual"][:100_000].splitlines()
    expected = [encoding.ids for encoding in pair.theirs.encode_batch(lines, add_special_tokens=False)]
    assert pair.ours.encode_batch(lines) == expected
    ids, offsets = pair.ours.encode_batch_to_numpy(lines)
    assert [list(row) for row in np.split(ids, offsets[1:-1])] == expected


def test_offsets(pair: Pair, texts: dict[str, str]) -> None:
    for text in texts.values():
        sample = text[:20_000]
        expected = pair.theirs.encode(sample, add_special_tokens=False)
        ids, offsets = pair.ours.encode_with_offsets(sample)
        assert list(ids) == expected.ids
        assert [tuple(pair_) for pair_ in offsets] == expected.offsets


def test_decoding(pair: Pair, texts: dict[str, str]) -> None:
    for text in texts.values():
        ids = pair.theirs.encode(text[:20_000], add_special_tokens=False).ids
        assert pair.ours.decode(ids) == pair.theirs.decode(ids, skip_special_tokens=False)


def test_the_vocabulary_reads_back(pair: Pair) -> None:
    theirs = pair.theirs.get_vocab(with_added_tokens=True)
    assert pair.ours.vocab_size == max(theirs.values()) + 1
    for token in pair.theirs.get_added_tokens_decoder().values():
        assert pair.ours.token_to_id(token.content.encode()) == theirs[token.content]


def test_saving_what_was_loaded_changes_nothing(pair: Pair, texts: dict[str, str], tmp_path: Path) -> None:
    again = _saved_by_us(pair.ours, tmp_path)
    for text in texts.values():
        expected = pair.theirs.encode(text[:25_000], add_special_tokens=False).ids
        assert again.theirs.encode(text[:25_000], add_special_tokens=False).ids == expected
        assert again.ours.encode(text[:25_000], allowed_special="all") == expected


@settings(max_examples=200, deadline=None)
@given(text=st.text(" \t\n\r\u00a0\u2003'sStTrevmlldD1²Ⅷa\u0301éſK中字😀.<|>_-/", max_size=40))
def test_strings_dense_in_what_the_patterns_distinguish(pair: Pair, text: str) -> None:
    assert pair.difference(text) == "equal"


def test_bytes_that_are_left_out_let_their_neighbours_merge(tmp_path: Path) -> None:
    vocab = {token: i for i, token in enumerate([*"abcĠÃ°", "ab", "ĠĠ", "abĠĠ"])}
    model = models.BPE(vocab, [("a", "b"), ("Ġ", "Ġ"), ("ab", "ĠĠ")])
    theirs = tokenizers.Tokenizer(model)
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.decoder = decoders.ByteLevel()
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_file(tmp_path)
    draw = random.Random(1)
    for length in (3, 10, 40, 300):
        for _ in range(40):
            text = "".join(draw.choices("ab c\u00f0\u0130\u0731ŧ中😀 ", k=length))
            expected = theirs.encode(text, add_special_tokens=False)
            assert ours.encode(text) == ours.encode_batch([text])[0] == expected.ids, ascii(text)
            assert ours.encode_with_offsets(text) == (expected.ids, expected.offsets), ascii(text)


@pytest.mark.parametrize("decoder", [decoders.ByteLevel(), decoders.Fuse(), None])
@pytest.mark.parametrize("normalizer", [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Prepend("a")])
def test_special_tokens_with_another_normal_form_are_not_skipped(normalizer: Any, decoder: Any, tmp_path: Path) -> None:
    theirs = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate("abx")}, []))
    theirs.normalizer = normalizer
    if decoder is not None:
        theirs.decoder = decoder
    for content in ("\ufb01", "X", "<y>"):
        theirs.add_special_tokens([tokenizers.AddedToken(content, normalized=True)])
    theirs.save(str(tmp_path / "tokenizer.json"))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_file(tmp_path)
    for ids in ([3], [4], [5], [0, 3, 1, 4, 2, 5]):
        expected = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=True) == expected
        stream = ours.decode_stream(skip_special_tokens=True)
        assert "".join(map(stream.push, ids)) + stream.flush() == expected


STEPS = {
    "ByteLevel": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "ByteLevel, no regex": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    "ByteLevel, prefix": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "Digits": pre_tokenizers.Digits(individual_digits=False),
    "single Digits": pre_tokenizers.Digits(individual_digits=True),
    "Split": pre_tokenizers.Split(Regex(r"\s+"), "isolated"),
    "Split that removes": pre_tokenizers.Split(Regex(r"\w+"), "removed", invert=True),
    "Split by text": pre_tokenizers.Split(" ", "merged_with_next"),
    "empty Sequence": pre_tokenizers.Sequence([]),
    "Whitespace": pre_tokenizers.Whitespace(),
    "Metaspace": pre_tokenizers.Metaspace(),
}
ONE_OR_TWO = [(), *((one,) for one in STEPS), *itertools.product(STEPS, repeat=2)]


@pytest.mark.parametrize("alphabet", [True, False], ids=["all bytes", "some bytes"])
def test_any_order_of_pre_tokenizers(alphabet: bool, tmp_path: Path) -> None:
    """None, one without ByteLevel, and steps after ByteLevel among them: no file loads as if it were another."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = STEPS["ByteLevel"]
    text = "low lower lowest don't 12 123 \u00e9t\u00e9  \u4e2d\n\tx"
    bytes_of_all = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=bytes_of_all, show_progress=False)
    model.train_from_iterator([text] * 3, trainer)
    described = json.loads(model.to_str())
    for names in ONE_OR_TWO:
        steps = [json.loads(STEPS[name].__getstate__()) for name in names]
        one = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
        described["pre_tokenizer"] = one if steps else None
        (tmp_path / "tokenizer.json").write_text(json.dumps(described))
        ours = Tokenizer.from_file(tmp_path / "tokenizer.json")
        theirs = tokenizers.Tokenizer.from_str(json.dumps(described))
        for example in (text, "  lower12 ", "\u0120low", "x"):
            ids = theirs.encode(example, add_special_tokens=False).ids
            assert ours.encode(example) == ids, (names, example)
            assert ours.decode(ids) == theirs.decode(ids), (names, example)
