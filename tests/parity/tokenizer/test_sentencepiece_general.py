"""Ids, offsets and texts equal sentencepiece's for BPE models of any options, trained here by its own trainer."""

from __future__ import annotations

import itertools
import pickle
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpe_llama import Tokenizer, _core
from tests.cost import costs
from tests.parity.tokenizer.sentencepiece_models import (
    BYTE,
    NORMAL,
    RULES,
    SYMBOLS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    WORDS,
    Model,
    built,
    piece,
    sides,
    train,
)


def encodes_itself(tokenizer: _core.Tokenizer) -> bool:
    """Return whether the model encodes step by step, and not as a byte-level vocabulary."""
    return tokenizer.sentencepiece_model() is not None


texts = st.lists(
    st.one_of(
        st.sampled_from(WORDS),
        st.text("ab cde▁éﬁＡ１ 里😀\u0301\u0300", max_size=8),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
    ),
    max_size=12,
).map("".join)


@st.composite
def models(draw: st.DrawFn, *, plain: bool = False) -> Model:
    """Return a model of random options; a plain one has byte fallback and no rules."""
    flags = st.booleans()
    options: dict[str, Any] = {
        "vocab_size": draw(st.sampled_from([400, 700])),
        "character_coverage": draw(st.sampled_from([0.98, 1.0])),
        "byte_fallback": plain or draw(flags),
        "normalization_rule_name": "identity" if plain else draw(st.sampled_from(RULES)),
        "add_dummy_prefix": draw(flags),
        "remove_extra_whitespaces": draw(flags),
        "treat_whitespace_as_suffix": not plain and draw(flags),
        "split_by_whitespace": draw(flags),
        "allow_whitespace_only_pieces": draw(flags),
        "control_symbols": draw(st.sampled_from([[], ["<c1>", "xyz"]])),
        "pad_id": draw(st.sampled_from([-1, 3])),
        "bos_id": draw(st.sampled_from([-1, 1])),
        "unk_surface": draw(st.sampled_from([" ⁇ ", "", "?", "▁", " "])),
        "unk_piece": draw(st.sampled_from(["<unk>", "[UNK]"])),
    }
    if symbols := draw(st.lists(st.sampled_from(SYMBOLS), unique=True, max_size=4)):
        options["user_defined_symbols"] = symbols
    model = train(**options)
    if plain:
        return model
    if draw(flags):
        every = draw(st.integers(2, 9))
        for piece in [piece for piece in model.pieces if piece.type == NORMAL][::every]:
            piece.type = UNUSED
    if draw(flags):
        step = draw(st.sampled_from([10.0, 50.0, 1e9]))
        for piece in (piece for piece in model.pieces if piece.type == NORMAL):
            piece.score = float(round(piece.score / step))
    model.normalizer_spec.escape_whitespaces = draw(st.integers(0, 4)) > 0
    if draw(st.integers(0, 4)) == 0:
        spec = model.denormalizer_spec
        spec.precompiled_charsmap = train(normalization_rule_name="nfkc").normalizer_spec.precompiled_charsmap
        spec.add_dummy_prefix, spec.remove_extra_whitespaces, spec.escape_whitespaces = draw(flags), draw(flags), False
    return model


def streamed(tokenizer: _core.Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.decode_stream()
    return "".join([stream.push(token) for token in ids]) + stream.flush()


# Lists of ids, drawn before the model is known: the kind of an id and its place among those of its kind.
PICKS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10**6)), max_size=9)


def picked(theirs: sentencepiece.SentencePieceProcessor, picks: list[tuple[int, int]]) -> list[int]:
    """Return ids of any kind, of tokens that begin with a space, and of control tokens and bytes."""
    every = list(range(theirs.vocab_size()))
    spaced = [token for token in every if theirs.id_to_piece(token).startswith("▁")]
    special = [token for token in every if theirs.is_control(token) or theirs.is_byte(token)]
    kinds = [ids or every for ids in (every, spaced, special)]
    return [kinds[kind][place % len(kinds[kind])] for kind, place in picks]


SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@SLOW
@given(model=models(), samples=st.lists(texts, min_size=20, max_size=20), lists=st.lists(PICKS, max_size=9))
def test_ids_offsets_and_texts_equal_sentencepieces(
    model: Model, samples: list[str], lists: list[list[tuple[int, int]]]
) -> None:
    ours, theirs = sides(model)
    ends = [None if end < 0 else end for end in (theirs.bos_id(), theirs.eos_id())]
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (theirs.vocab_size(), *ends)
    for text in samples:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.count(text) == len(ids)
        assert ours.decode(ids) == streamed(ours, ids) == theirs.decode(ids)
        offsets = theirs.encode(text, return_type="offset_mapping")["offsets"]
        with_offsets = ours.encode_with_offsets(text)
        if not encodes_itself(ours):
            # A prefix that is a token has no character in sentencepiece; in `tokenizers` and here, the first one.
            pairs = zip(offsets, with_offsets[1], strict=True)
            offsets = [own if start == end else (start, end) for (start, end), own in pairs]
        assert with_offsets == (ids, offsets)
    for picks in lists:
        ids = picked(theirs, picks)
        if not encodes_itself(ours):  # tokenizer.json decodes these to their names
            ids = [token for token in ids if not theirs.is_control(token) and not theirs.is_unknown(token)]
        assert ours.decode(ids) == streamed(ours, ids) == theirs.decode(ids)


@SLOW
@given(
    model=models(plain=True),
    samples=st.lists(texts, min_size=5, max_size=5),
    lists=st.lists(PICKS, min_size=20, max_size=20),
)
def test_byte_level_merging_decodes_as_sentencepiece_too(
    model: Model, samples: list[str], lists: list[list[tuple[int, int]]]
) -> None:
    ours, theirs = sides(model)
    for picks in lists:
        ids = picked(theirs, picks)
        if not encodes_itself(ours):
            ids = [token for token in ids if not theirs.is_control(token) and not theirs.is_unknown(token)]
        assert ours.decode(ids) == streamed(ours, ids) == theirs.decode(ids)
    for text in samples:
        assert ours.encode(text) == theirs.encode(text)


@SLOW
@given(model=models(plain=True), picks=st.lists(PICKS, min_size=20, max_size=20))
def test_a_pickle_decodes_as_sentencepiece_too(model: Model, picks: list[list[tuple[int, int]]]) -> None:
    tok, (_, theirs) = Tokenizer(sides(model)[0]), sides(model)
    again = pickle.loads(pickle.dumps(tok))
    assert encodes_itself(again) == encodes_itself(tok)
    assert again.normalizes_added_tokens == tok.normalizes_added_tokens
    for drawn in picks:
        ids = picked(theirs, drawn)
        assert again.decode(ids) == streamed(again, ids) == tok.decode(ids)
        assert again.decode_bytes(ids) == tok.decode_bytes(ids)
    for text in ["  ab b ", "éa▁b", "\x00日本"]:
        assert again.encode(text) == tok.encode(text)
        assert again.encode_bytes(text.encode() + b"\xff a") == tok.encode_bytes(text.encode() + b"\xff a")


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_bytes_that_are_no_text(byte_fallback: bool) -> None:
    ours, theirs = sides(train(byte_fallback=byte_fallback, user_defined_symbols=["<mask>", "é"]))
    draw = random.Random(0)
    parts = [b"a", b"the", b" ", b"\xe2", b"\x81", "▁".encode(), b"\xff", b"<mask>", "é".encode(), b"\xef\xac", b"\xc3"]
    for _ in range(3000):
        raw = b"".join(draw.choices([*parts, bytes([draw.randrange(256)])], k=draw.randrange(10)))
        assert ours.encode_bytes(raw) == theirs.encode(raw)


def test_text_between_special_tokens_is_encoded_separately() -> None:
    ours, theirs = sides(train(control_symbols=["<c1>"], add_dummy_prefix=True))
    mark, end = theirs.piece_to_id("<c1>"), theirs.eos_id()
    text = "the  ﬁne<c1> the</s>quick"
    parts = [theirs.encode(part) for part in ("the  ﬁne", " the", "quick")]
    ids = [*parts[0], mark, *parts[1], end, *parts[2]]
    assert ours.encode(text, allowed_special="all") == ids
    with_offsets, offsets = ours.encode_with_offsets(text, allowed_special="all")
    assert with_offsets == ids
    assert offsets[ids.index(mark)] == (8, 12)
    assert offsets[-len(parts[2])][0] == text.index("quick")
    assert not {mark, end} & set(ours.encode(text))
    assert ours.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2, "<c1>": mark}
    assert ours.encode_batch([text, "", "the"], num_threads=2, bos=True, eos=True) == [
        theirs.encode(part, add_bos=True, add_eos=True) for part in (text, "", "the")
    ]


@pytest.mark.parametrize("letters", [50, 99, 100, 101, 102, 130])
def test_unused_pieces_are_split_to_a_depth(letters: int) -> None:
    pieces = [("a" * n, -float(n), UNUSED if n > 1 else NORMAL) for n in range(1, 141)]
    ours, theirs = sides(built(pieces))
    for text in ("a" * letters, "b" + "a" * letters + "ba"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode_with_offsets(text)[1] == theirs.encode(text, return_type="offset_mapping")["offsets"]


def test_an_unused_piece_is_split_by_its_last_merge() -> None:
    pieces = [("abc", -1, UNUSED), ("ab", -3, NORMAL), ("bc", -2, NORMAL), ("xab", -1, NORMAL), ("bcy", -1, NORMAL)]
    ours, theirs = sides(built([*pieces, *((letter, -9, NORMAL) for letter in "abcxy")]))
    for letters in itertools.product("abcxy", repeat=6):
        assert ours.encode("".join(letters)) == theirs.encode("".join(letters))


def test_the_first_64_nested_symbols_count() -> None:
    pieces = [("a" * n, 0, USER_DEFINED) for n in range(1, 100)]
    ours, theirs = sides(built(pieces))
    for text in ("a" * n + end for n in (63, 64, 65, 99, 100, 300) for end in ("", "b")):
        assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("scores", [(0.0, -0.0), (float("inf"), float("-inf")), (float("nan"), 1.0), (1.0, 2.0)])
def test_scores_of_any_kind_are_ordered_alike(scores: tuple[float, float]) -> None:
    pieces = [("ab", scores[0], NORMAL), ("ba", scores[1], NORMAL), ("aba", 0.5, NORMAL), ("b", 0, NORMAL)]
    ours, theirs = sides(built(pieces))
    for letters in itertools.product("abc", repeat=7):
        assert ours.encode("".join(letters)) == theirs.encode("".join(letters))


@pytest.mark.parametrize("kind", ["unigram", "word", "char"])
def test_other_models_are_refused_with_advice(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train(model_type=kind, vocab_size=100).SerializeToString())
    with pytest.raises(ValueError, match=rf"\({kind.title()}\).*model_type.*sentencepiece package") as error:
        Tokenizer.from_file(path)
    assert str(path) in str(error.value)


BROKEN = {
    "piece is too long": [("a" * 8000, 0.0, NORMAL)],
    "two ids": [("ab", 0.0, NORMAL), ("ab", 0.0, NORMAL)],
    "is empty": [("", 0.0, NORMAL)],
    "zero byte": [("a\0", 0.0, NORMAL)],
    "both of the type unknown": [("[UNK]", 0.0, UNKNOWN)],
    "byte_fallback": [("<0x41>", 0.0, BYTE)],
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_sentencepiece_refuses_is_refused(message: str) -> None:
    data = built(BROKEN[message]).SerializeToString()
    with pytest.raises(RuntimeError):
        sentencepiece.SentencePieceProcessor(model_proto=data)
    with pytest.raises(ValueError, match=message.replace("piece is", "is")):
        # Without the field, a file of 256 bytes falls back on them.
        _core.Tokenizer.build_from_sentencepiece(data)


def test_changed_files_are_refused_or_read_as_sentencepiece_reads_them() -> None:
    draw = random.Random(0)
    files = [
        train(vocab_size=90, normalization_rule_name="nmt_nfkc").SerializeToString(),
        train(vocab_size=420, byte_fallback=True, user_defined_symbols=["<mask>"]).SerializeToString(),
    ]
    read = 0
    for _ in range(1500):
        data = bytearray(draw.choice(files))
        for _ in range(draw.randrange(1, 4)):
            # Pieces stand first, options last, the rules for characters between them.
            at = draw.choice([draw.randrange(len(data)), draw.randrange(2000), len(data) - 1 - draw.randrange(300)])
            match draw.randrange(3):
                case 0:
                    data[at] = draw.randrange(256)
                case 1:
                    del data[at : at + draw.randrange(1, 5)]
                case _:
                    data[at:at] = draw.randbytes(draw.randrange(1, 4))
        try:
            ours = _core.Tokenizer.build_from_sentencepiece(bytes(data))
        except ValueError:
            continue
        ids = [ours.encode(text) for text in WORDS]
        decoded = [ours.decode(row) for row in ids]
        try:
            theirs = sentencepiece.SentencePieceProcessor(model_proto=bytes(data))
            assert ids == theirs.encode(WORDS)
            assert decoded == theirs.decode(ids)
            read += 1
        except (RuntimeError, UnicodeDecodeError):
            continue
    assert read > 100


@pytest.mark.parametrize("unit", ["a", "ab", " ", "▁", "里", "x", "e\u0301", "ﷺ", "the quick "])
@pytest.mark.parametrize("kind", ["rules", "unused", "across words"])
def test_a_long_text_of_one_unit_costs_about_what_sentencepiece_costs(unit: str, kind: str) -> None:
    model = train(byte_fallback=True, split_by_whitespace=kind != "across words")
    if kind == "unused":
        model.pieces[-5].type = UNUSED
    for n in range(2, 400):  # long pieces of one letter
        model.pieces.append(piece("a" * (5 * n), -float(n), NORMAL))
    ours, theirs = sides(model)
    # Of text as the model sees it: one of these characters becomes eighteen.
    text = unit * (250_000 // len(unicodedata.normalize("NFKC", unit).encode()))
    assert ours.encode(text) == theirs.encode(text)
    our_cost, their_cost = costs(lambda: ours.encode(text), lambda: theirs.encode(text))
    assert our_cost < 10 * their_cost  # 1.4 at most; thousands where it is quadratic


def test_tokens_are_found_by_their_text() -> None:
    ours, theirs = sides(train(byte_fallback=True))
    for token in range(theirs.vocab_size()):
        text = theirs.id_to_piece(token)
        spaced = text.replace("▁", " ").encode()
        if theirs.is_byte(token):
            assert ours.id_to_bytes(token) == bytes([int(text[3:5], 16)])
        else:
            assert (ours.id_to_bytes(token), ours.token_to_id(spaced)) == (spaced, token)
        assert (ours.id_to_token(token), ours.token_to_id(text)) == (text, token)
    with pytest.raises(KeyError, match="not in this vocabulary"):
        ours.decode([theirs.vocab_size()])
