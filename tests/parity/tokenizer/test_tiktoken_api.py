"""`bpe_llama.tiktoken` is tiktoken: its own tests pass, and each method returns or raises what tiktoken's does."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken as theirs
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bpe_llama
from bench import data
from bpe_llama import Tokenizer
from bpe_llama import tiktoken as ours
from bpe_llama._core import Tokenizer as CoreTokenizer

BYTES = {bytes([byte]): byte for byte in range(256)}
SMALL = {token: 256 + i for i, token in enumerate((b"lo", b"low", b"er", b"  ", b"\xc3\xa9", b"e\xcc", b" l", b" lo"))}


@dataclass
class Pair:
    """The same encoding of both packages."""

    ours: ours.Encoding
    theirs: theirs.Encoding


@pytest.fixture(scope="module", autouse=True)
def cache(real: Callable[..., Any]) -> Any:
    """Let both packages find the published files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(real(data.tiktoken_cache)))
        yield


@pytest.fixture(scope="module", params=["r50k_base", "p50k_edit", "cl100k_base", "o200k_harmony", "gaps", "look"])
def pair(request: pytest.FixtureRequest) -> Pair:
    if request.param not in ("gaps", "look"):
        return Pair(ours.get_encoding(request.param), theirs.get_encoding(request.param))
    described: dict[str, Any] = {
        "name": request.param,
        "pat_str": r"[\w|<>]+| {2,}" if request.param == "gaps" else r"\w+(?=\s|$)|.(?<!x)|\n",
        "mergeable_ranks": BYTES | SMALL,
        "special_tokens": {"<|endoftext|>": 300, "<|fim|>": 301, "low": 302},
    }
    return Pair(ours.Encoding(**described), theirs.Encoding(**described))


def outcome(call: Callable[[Any], Any], encoding: Any) -> Any:
    """Return what a call returns, or the type of what it raises."""
    try:
        result = call(encoding)
    except Exception as error:
        return type(error)
    return result.tolist() if isinstance(result, np.ndarray) else result


def check(pair: Pair, method: str, *arguments: Any, **options: Any) -> None:
    """Assert that a method of both encodings returns the same, or raises the same type."""
    got, expected = (
        outcome(lambda e: getattr(e, method)(*arguments, **options), encoding) for encoding in (pair.ours, pair.theirs)
    )
    assert got == expected, method


PIECES = st.one_of(
    st.text(st.characters(codec=None, categories=None), max_size=8),
    st.text(" \t\n\r\u00a0\u2003'stlowerLOx1é\u0301中😀.<|>", max_size=12),
    st.sampled_from(
        ["<|endoftext|>", "<|fim_prefix|>", "<|fim|>", "<|start|>", "<|endofprompt|>", "low", "\ud83d\ude00"]
    ),
)
TEXT = st.lists(PIECES, max_size=6).map("".join)
SPECIALS = st.sampled_from(
    [
        {},
        {"disallowed_special": ()},
        {"allowed_special": "all"},
        {"allowed_special": {"<|endoftext|>"}, "disallowed_special": ()},
        {"allowed_special": frozenset({"<|fim|>", "<|start|>", "no such token"})},
        {"disallowed_special": {"<|endoftext|>", "er", "1"}},
        {"disallowed_special": ["low"], "allowed_special": {"low"}},
    ]
)


@settings(max_examples=80, deadline=None)
@given(text=TEXT, specials=SPECIALS)
@example(text="<|endoftext|>", specials={})
@example(text="\ud800 low", specials={"disallowed_special": ()})
@example(text="<|endoftext|>", specials={"disallowed_special": None})
def test_text_to_ids(pair: Pair, text: str, specials: dict[str, Any]) -> None:
    check(pair, "encode", text, **specials)
    check(pair, "encode_to_numpy", text, **specials)
    check(pair, "encode_ordinary", text)
    check(pair, "encode_single_token", text)
    if text.isascii():  # theirs splits by Python's regex, of another Unicode version
        check(pair, "_encode_only_native_bpe", text)
    if text:
        check(pair, "_encode_single_piece", text)


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(TEXT, max_size=4), specials=SPECIALS)
def test_batches(pair: Pair, texts: list[str], specials: dict[str, Any]) -> None:
    check(pair, "encode_batch", texts, num_threads=2, **specials)
    rows = pair.theirs.encode_ordinary_batch(texts)
    assert pair.ours.encode_ordinary_batch(texts) == rows
    assert pair.ours.decode_batch(rows) == pair.theirs.decode_batch(rows)
    assert pair.ours.decode_bytes_batch(rows) == pair.theirs.decode_bytes_batch(rows)


@settings(max_examples=30, deadline=None)
@given(text=st.lists(PIECES.filter(lambda piece: len(piece) < 8), max_size=3).map("".join), specials=SPECIALS)
@example(text="hello fanta", specials={})
@example(text="low er\n\n ", specials={})
@example(text="x\t \n", specials={})
@example(text="a<|endoftext|>", specials={"allowed_special": "all"})
@example(text="a<|endoftext|> lo", specials={"allowed_special": "all"})
@example(text="中文", specials={})
def test_unstable_ends(pair: Pair, text: str, specials: dict[str, Any]) -> None:
    def call(encoding: Any) -> Any:
        stable, ways = encoding.encode_with_unstable(text, **specials)
        assert all(isinstance(way, list) for way in ways)
        assert len({tuple(way) for way in ways}) == len(ways)
        return stable, sorted(ways)

    assert outcome(call, pair.ours) == outcome(call, pair.theirs)


@settings(max_examples=50, deadline=None)
@given(
    block=st.one_of(
        st.binary(max_size=20), st.lists(st.sampled_from([b"low ", b"\n ", b"\xc3", b"\xa9x"])).map(b"".join)
    )
)
def test_bytes_to_ids(pair: Pair, block: bytes) -> None:
    assert pair.ours._encode_bytes(block) == pair.theirs._encode_bytes(block)
    check(pair, "encode_single_token", block)


ID = st.one_of(st.integers(0, 50_300), st.sampled_from([-1, 2**32, 2**40, 300, 301, 50256, 50281, 100257, 200018]))


@settings(max_examples=80, deadline=None)
@given(ids=st.lists(ID, max_size=8), errors=st.sampled_from(["replace", "strict", "ignore", "no such"]))
def test_ids_to_text(pair: Pair, ids: list[int], errors: str) -> None:
    for sequence in (ids, tuple(ids), np.array(ids, dtype=np.int64)):
        check(pair, "decode", sequence, errors)
        check(pair, "decode_bytes", sequence)
        check(pair, "decode_tokens_bytes", sequence)
        check(pair, "decode_with_offsets", sequence)
    for token in ids:
        check(pair, "decode_single_token_bytes", token)
        check(pair, "is_special_token", token)


@settings(max_examples=50, deadline=None)
@given(text=TEXT.filter(lambda text: text.isprintable()))
def test_offsets(pair: Pair, text: str) -> None:
    ids = pair.theirs.encode(text, allowed_special="all")
    assert pair.ours.decode_with_offsets(ids) == pair.theirs.decode_with_offsets(ids)


def test_the_vocabulary(pair: Pair) -> None:
    for attribute in ("name", "_pat_str", "_mergeable_ranks", "_special_tokens", "max_token_value", "n_vocab"):
        assert getattr(pair.ours, attribute) == getattr(pair.theirs, attribute), attribute
    for attribute in ("eot_token", "special_tokens_set", "_special_token_values"):
        assert getattr(pair.ours, attribute) == getattr(pair.theirs, attribute), attribute
    assert pair.ours.token_byte_values() == pair.theirs.token_byte_values()
    assert repr(pair.ours) == repr(pair.theirs)


@pytest.mark.parametrize(
    "call",
    [
        lambda e: e.encode(3),
        lambda e: e.encode("a", allowed_special=["<|endoftext|>"]),
        lambda e: e.encode("a", allowed_special="<|endoftext|>"),
        lambda e: e.encode("a", allowed_special={3}, disallowed_special=()),
        lambda e: e.encode("a", disallowed_special=3),
        lambda e: e.encode("a", disallowed_special=[3]),
        lambda e: e.encode("low", disallowed_special="we"),
        lambda e: e.encode("low", disallowed_special=[""]),
        lambda e: e.encode_batch("ab"),
        lambda e: e.encode_batch(["a", 3]),
        lambda e: e.encode_batch(["a"], num_threads=0),
        lambda e: e.encode_batch(iter(["a", "b"]), num_threads=100),
        lambda e: e.decode_batch([[97]], num_threads=0),
        lambda e: e.decode_batch([[97], [2**31]]),
        lambda e: e.decode(iter([97])),
        lambda e: e.decode({97}),
        lambda e: e.decode({97: 1}),
        lambda e: e.decode("ab"),
        lambda e: e.decode(b"ab"),
        lambda e: e.decode([97.0]),
        lambda e: e.decode(97),
        lambda e: e.decode(range(97, 99)),
        lambda e: e.decode_single_token_bytes("a"),
        lambda e: e.decode_single_token_bytes(1.0),
        lambda e: e.decode_single_token_bytes(True),
        lambda e: e.is_special_token(1.0),
        lambda e: e.encode_single_token(3),
        lambda e: e.encode_single_token(bytearray(b"a")),
        lambda e: e._encode_bytes("a"),
        lambda e: e._encode_bytes(bytearray(b"a")),
        lambda e: e._encode_single_piece(3),
    ],
)
def test_odd_arguments(pair: Pair, call: Callable[[Any], Any]) -> None:
    assert outcome(call, pair.ours) == outcome(call, pair.theirs)


@pytest.mark.parametrize(
    "changes",
    [
        {"pat_str": "("},
        {"mergeable_ranks": {}},
        {"mergeable_ranks": BYTES | {b"zz": -1}},
        {"mergeable_ranks": BYTES | {b"zz": 2**32}},
        {"mergeable_ranks": BYTES | {"zz": 300}},
        {"mergeable_ranks": [b"a"]},
        {"special_tokens": {"<s>": -1}},
        {"special_tokens": {"<s>": 2**32}},
        {"special_tokens": {}},
        {"explicit_n_vocab": 256},
        {"explicit_n_vocab": 257},
        {"explicit_n_vocab": 257, "special_tokens": {"<s>": 256}},
    ],
)
def test_odd_vocabularies(changes: dict[str, Any]) -> None:
    described: dict[str, Any] = {"pat_str": r"\w+|\W", "mergeable_ranks": BYTES, "special_tokens": {"<s>": 300}}
    described |= changes
    got, expected = (outcome(lambda p: p.Encoding("odd", **described).n_vocab, package) for package in (ours, theirs))
    assert got == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mergeable_ranks": BYTES | {b"zz": 97}}, "97"),
        ({"mergeable_ranks": BYTES | {b"": 257}}, "empty"),
        ({"special_tokens": {"<s>": 97}}, "has id 97, which an ordinary token has"),
        ({"special_tokens": {"<s>": 2**21}}, "2097152"),
        ({"special_tokens": {"": 300}}, "empty"),
    ],
)
def test_what_only_we_refuse(changes: dict[str, Any], message: str) -> None:
    """tiktoken panics, takes an id for two tokens, or never ends."""
    described: dict[str, Any] = {"pat_str": r"\w+|\W", "mergeable_ranks": BYTES, "special_tokens": {"<s>": 300}}
    with pytest.raises(ValueError, match=message):
        ours.Encoding("odd", **(described | changes))


def test_a_byte_without_a_token_is_an_error() -> None:
    enc = ours.Encoding("few", pat_str=r"\w+|\W", mergeable_ranks={b"a": 0, b"b": 1}, special_tokens={})
    assert enc.encode("ab") == [0, 1]
    for call in (enc.encode, enc.encode_with_unstable, enc._encode_single_piece):
        with pytest.raises(ValueError, match="0x63 has no token"):
            call("abc")
    with pytest.raises(ValueError, match="empty"):
        enc._encode_single_piece("")


@pytest.mark.parametrize("pattern", ["a", "cl100k", "gpt2", "a|b", "(?#oniguruma)a", ""])
def test_a_pattern_is_never_a_name(pattern: str) -> None:
    described: dict[str, Any] = {"pat_str": pattern, "mergeable_ranks": BYTES, "special_tokens": {}}
    expected = [] if pattern == "" else theirs.Encoding("x", **described).encode("a gpt2 cl100k b")
    assert ours.Encoding("x", **described).encode("a gpt2 cl100k b") == expected  # "" makes theirs panic


def test_names_and_signatures() -> None:
    assert ours.__version__ == theirs.__version__
    for name in ("get_encoding", "encoding_for_model", "encoding_name_for_model", "list_encoding_names"):
        assert list(inspect.signature(getattr(ours, name)).parameters) == list(
            inspect.signature(getattr(theirs, name)).parameters
        )
    for name, method in inspect.getmembers(theirs.Encoding, inspect.isfunction):
        if name in ("__setstate__", "__getstate__"):
            continue
        expected = inspect.signature(method).parameters
        got = inspect.signature(getattr(ours.Encoding, name)).parameters
        assert [(p.name, p.kind) for p in got.values()] == [(p.name, p.kind) for p in expected.values()], name
    assert ours.list_encoding_names() == theirs.list_encoding_names()
    for name in (None, 3, "cl100k", "llama3"):
        for package in (ours, theirs):
            with pytest.raises(ValueError, match=r"(?i)encoding"):
                package.get_encoding(name)
    with pytest.raises(ValueError, match="did you mean 'cl100k_base'"):
        ours.get_encoding("cl100k")
    assert ours.encoding_for_model("gpt-4") is ours.get_encoding("cl100k_base")


def test_pickles_and_copies(pair: Pair) -> None:
    text = "hello<|endoftext|> low er"
    expected = pair.theirs.encode(text, allowed_special="all")
    stored = pickle.dumps(pair.ours)
    is_named = pair.ours.name in ours.list_encoding_names()
    assert (len(stored) < 200) == is_named
    shared = Tokenizer.from_ranks(BYTES | SMALL, "cl100k", {"<|endoftext|>": 300}).as_tiktoken("mine")
    for encoding in (pickle.loads(stored), copy.deepcopy(pair.ours), copy.copy(pair.ours)):
        assert (len(pickle.dumps(encoding)) < 200) == is_named
        assert encoding.encode(text, allowed_special="all") == expected
        assert encoding.name == pair.ours.name
        assert encoding.special_tokens_set == pair.ours.special_tokens_set
    again = pickle.loads(pickle.dumps(shared))
    assert again.encode(text, allowed_special="all") == shared.encode(text, allowed_special="all")
    assert (again.name, again._pat_str, again.eot_token) == ("mine", shared._pat_str, 300)


def test_many_threads(pair: Pair) -> None:
    texts = [f"low {i} er  <|endoftext|> \n é" * 20 for i in range(64)]
    expected = [pair.theirs.encode(text, allowed_special="all") for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: pair.ours.encode(text, allowed_special="all"), texts)) == expected


def test_a_tokenizer_as_tiktoken(real: Callable[..., Any]) -> None:
    tok = Tokenizer.from_file(real(data.vocabulary, "cl100k"))
    mine, official = tok.as_tiktoken(), theirs.get_encoding("cl100k_base")
    assert mine.name == "bpe_llama"
    text = "Hello world<|endoftext|>"
    assert mine.encode(text, allowed_special="all") == official.encode(text, allowed_special="all")
    assert (mine._mergeable_ranks, mine._special_tokens) == (official._mergeable_ranks, official._special_tokens)
    assert mine.n_vocab == official.n_vocab
    rebuilt = theirs.Encoding(
        "x", pat_str=mine._pat_str, mergeable_ranks=mine._mergeable_ranks, special_tokens=mine._special_tokens
    )
    assert rebuilt.encode_ordinary("It's 123 words") == tok.encode("It's 123 words")


def test_what_tiktoken_cannot_express_is_refused(real: Callable[..., Any], tmp_path: Path) -> None:
    ranks = BYTES | SMALL
    tok = Tokenizer.from_ranks(ranks, "cl100k", {"<s>": 300})
    tok.as_tiktoken()
    with pytest.raises(ValueError, match=r"the added token \"<x>\", which is not special"):
        tok.with_tokens(["<x>"]).as_tiktoken()
    assert tok.with_special_tokens(["<x>"]).as_tiktoken().special_tokens_set == {"<s>", "<x>"}
    tok.save(tmp_path / "tokenizer.json")
    text = (tmp_path / "tokenizer.json").read_text("utf-8")
    plain = Tokenizer.from_file(tmp_path / "tokenizer.json").as_tiktoken()
    assert plain.encode("low er<s>", allowed_special="all") == tok.encode("low er<s>", allowed_special="all")
    for old, new, message in (
        ('"normalizer":null', '"normalizer":{"type": "NFC"}', r"normalization \(NFC\)"),
        ('"normalizer":null', '"normalizer":{"type": "Lowercase"}', "Lowercase"),
    ):
        assert old in text
        (tmp_path / "tokenizer.json").write_text(text.replace(old, new), "utf-8")
        with pytest.raises(ValueError, match=f"tiktoken cannot express this tokenizer: .*{message}"):
            Tokenizer.from_file(tmp_path / "tokenizer.json").as_tiktoken()
    with pytest.raises(ValueError, match="SentencePiece"):
        Tokenizer.from_file(real(data.vocabulary, "mistral")).as_tiktoken()
    merges = [(97, 98), (98, 99)]  # b"bc" is merged last, but has the lower id
    core = CoreTokenizer.build_from_merges([*BYTES, b"bc", b"ab"], merges, "cl100k")
    with pytest.raises(ValueError, match="an order of merges other than that of the ids"):
        Tokenizer(core).as_tiktoken()


@pytest.mark.slow
def test_tiktokens_own_tests(real: Callable[..., Any], tmp_path: Path) -> None:
    tests = real(data.tiktoken_tests)
    shim = "import sys\nfrom bpe_llama import tiktoken\nsys.modules[__name__] = tiktoken\n"
    (tmp_path / "tiktoken.py").write_text(shim)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    package = Path(bpe_llama.__file__).parents[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, package))),
        "TIKTOKEN_MAX_EXAMPLES": "50",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(tmp_path / "pytest.ini")]
    check = "import tiktoken; assert tiktoken.__name__ == 'bpe_llama.tiktoken', tiktoken"
    subprocess.run([sys.executable, "-c", check], env=environment, check=True, timeout=300)
    done = subprocess.run(
        [*command, str(tests)], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
