"""Bad input raises the error that names it: never a panic, a hang or a wrong id."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpe_llama import Sampler, Tokenizer, WordCounts
from bpe_llama._core import Linear
from bpe_llama.educational import EducationalTokenizer

BYTES = {bytes([b]): b for b in range(256)}


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    for load in (Tokenizer.from_file, Tokenizer.from_huggingface, Tokenizer.from_gguf):
        with pytest.raises(OSError, match=r"missing\.json"):
            load(tmp_path / "missing.json")
    with pytest.raises(OSError, match=r"missing\.tiktoken"):
        Tokenizer.from_tiktoken(tmp_path / "missing.tiktoken", pattern="cl100k")


@pytest.mark.parametrize("vocab_size", [-1, 0, 255, 256 + 1])
def test_a_vocabulary_without_room_for_the_bytes_and_specials_raises(vocab_size: int) -> None:
    with pytest.raises((ValueError, OverflowError), match=str(vocab_size)):
        Tokenizer.train_from_iterator(["some text"], vocab_size=vocab_size, special_tokens=["<a>", "<b>"])


@pytest.mark.parametrize("pattern", ["cl100", "gpt9", "llama-3"])
def test_an_unknown_pattern_name_lists_the_known(pattern: str) -> None:
    with pytest.raises(ValueError, match="cl100k") as caught:
        Tokenizer.train_from_iterator(["some text"], vocab_size=300, pattern=pattern)
    assert pattern in str(caught.value)


@pytest.mark.parametrize("pattern", [r"(\w+", r"[a-", r"(?<=a+", "*"])
def test_a_broken_regex_is_named(pattern: str) -> None:
    with pytest.raises(ValueError) as caught:
        Tokenizer.from_ranks(BYTES, pattern=pattern)
    assert pattern.replace("\\", "\\\\") in str(caught.value)


@pytest.mark.parametrize("pattern", [r"(?:(a+)+\1)+$|\w", r"(a|aa)+(?!a)\1b", r"(?:(?=(a+))a*?)*\1b"])
def test_a_regex_that_backtracks_without_end_is_stopped(pattern: str, tmp_path: Path) -> None:
    tok = Tokenizer.from_ranks(BYTES, pattern=pattern)
    text = "word " + "a" * 60 + "!"
    (tmp_path / "a.txt").write_text(text)
    for call in (
        lambda: tok.encode(text),
        lambda: tok.count(text * 1000),
        lambda: tok.encode_batch([text, text], num_threads=2),
        lambda: tok.encode_with_offsets(text),
        lambda: tok.encode_files(tmp_path / "a.txt", tmp_path / "ids.npy"),
        lambda: Tokenizer.train_from_iterator([text], vocab_size=300, pattern=pattern),
    ):
        started = time.perf_counter()
        with pytest.raises(ValueError, match=r"gave up on the text behind byte .* 1000000 steps"):
            call()
        assert time.perf_counter() - started < 60  # the steps are counted; without that it takes years


def test_special_tokens_that_clash() -> None:
    with pytest.raises(ValueError, match="10"):
        Tokenizer.from_ranks(BYTES, pattern="cl100k", special_tokens={"<a>": 10})
    with pytest.raises(ValueError, match="empty"):
        Tokenizer.from_ranks(BYTES, pattern="cl100k", special_tokens={"": 256})
    for bad in (-1, 2**21, 2**31, 2**64):
        with pytest.raises(ValueError, match=f"'<a>' has id {bad}"):
            Tokenizer.from_ranks(BYTES, pattern="cl100k", special_tokens={"<a>": bad})


@pytest.mark.parametrize("bad", [1000, 2**32 - 1, 2**32, 2**64, -1])
def test_an_id_out_of_range_is_named(tok: Tokenizer, bad: int) -> None:
    push = tok.decode_stream().push
    for call, ids in ((tok.decode_bytes, [1, bad]), (tok.decode, [1, bad]), (tok.id_to_bytes, bad), (push, bad)):
        with pytest.raises((ValueError, KeyError, OverflowError), match=str(bad)):
            call(ids)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int32, np.int64, np.uint64, np.int8, object])
def test_ids_in_arrays_are_checked_one_by_one(tok: Tokenizer, dtype: Any) -> None:
    ids = tok.encode("some text 日本語")
    small = [i for i in ids if i < 128]
    for order in (1, -1):
        assert tok.decode_bytes(np.array(small, dtype)[::order]) == tok.decode_bytes(small[::order])
    if dtype in (np.int32, np.int64, object):
        with pytest.raises(KeyError, match="id -7 is"):
            tok.decode_bytes(np.array([1, -7], dtype))
    if dtype in (np.uint16, np.uint32, np.int64):
        assert tok.decode(np.array(ids, dtype)) == "some text 日本語"
        with pytest.raises(KeyError, match="id 60000 is"):
            tok.decode(np.array([1, 60_000], dtype))
    with pytest.raises(TypeError):
        tok.decode_bytes(np.array([[1, 2]], dtype))
    assert tok.decode_bytes(np.array([], dtype)) == b""


@pytest.mark.parametrize("wrong", [None, 1, b"bytes", ["list"]])
def test_text_of_a_wrong_type_raises(tok: Tokenizer, wrong: Any) -> None:
    for call in (tok.encode, tok.encode_ordinary, tok.encode_to_numpy, tok.count):
        with pytest.raises(TypeError):
            call(wrong)
    with pytest.raises(TypeError):
        tok.encode_batch([wrong])


def test_one_string_is_no_batch(tok: Tokenizer) -> None:
    with pytest.raises(TypeError):
        tok.encode_batch("a string would be cut into letters")


def test_bos_without_such_a_token_raises(bytes_only: Tokenizer) -> None:
    assert bytes_only.bos_id is None and bytes_only.eos_id is None
    with pytest.raises(ValueError, match="bos"):
        bytes_only.encode("text", bos=True)
    with pytest.raises(ValueError, match="eos"):
        bytes_only.encode("text", eos=True)


def test_a_negative_limit_raises(tok: Tokenizer) -> None:
    with pytest.raises((ValueError, OverflowError)):
        tok.truncate("text", max_tokens=-1)


def test_a_vocabulary_lacking_some_byte_says_which(tmp_path: Path) -> None:
    ranks = {token: rank for token, rank in BYTES.items() if token != b"z"}
    try:
        tok = Tokenizer.from_ranks(ranks, pattern="cl100k")
    except ValueError as error:
        assert "0x7A" in str(error)
        return
    assert tok.encode("abc") == [97, 98, 99]
    with pytest.raises(ValueError, match="0x7A"):
        tok.encode("fuzz")


def test_ranks_that_clash() -> None:
    with pytest.raises(ValueError, match="97"):
        Tokenizer.from_ranks({**BYTES, b"ab": 97}, pattern="cl100k")


_GOOD_LINE = base64.b64encode(b"a") + b" 0\n"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no token in it"),
        (b"YQ==\n", "line 1"),
        (b"YQ== x\n", "line 1"),
        (_GOOD_LINE + b"!!! 1\n", "line 2"),
        (_GOOD_LINE + b"Yg== 99999999999\n", "line 2"),
        (_GOOD_LINE + b"Yg== -1\n", "line 2"),
        (_GOOD_LINE + b"Yg== 0\n", "0"),
        (_GOOD_LINE + b"YQ== 1\n", "a|line 2"),
        (b"\x00\xff\xfe", "line 1"),
    ],
)
def test_a_damaged_tiktoken_file_says_where(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "vocab.tiktoken"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        Tokenizer.from_tiktoken(path, pattern="cl100k")


def test_every_truncation_of_a_tiktoken_file_raises_or_loads_what_is_there(tok: Tokenizer, tmp_path: Path) -> None:
    tok.save(tmp_path / "whole.tiktoken")
    whole = (tmp_path / "whole.tiktoken").read_bytes()
    for size in range(0, 6000, 37):
        (tmp_path / "cut.tiktoken").write_bytes(whole[:size])
        try:
            loaded = Tokenizer.from_tiktoken(tmp_path / "cut.tiktoken", pattern="cl100k")
        except ValueError:
            continue
        assert whole[:size].count(b"\n") <= loaded.vocab_size <= whole[:size].count(b"\n") + 1


def test_every_truncation_of_a_tokenizer_json_raises(tok: Tokenizer, tmp_path: Path) -> None:
    tok.save(tmp_path / "tokenizer.json")
    whole = (tmp_path / "tokenizer.json").read_bytes()
    for size in [*range(0, len(whole) - 2, max(1, len(whole) // 200))]:
        (tmp_path / "cut.json").write_bytes(whole[:size])
        with pytest.raises(ValueError):
            Tokenizer.from_file(tmp_path / "cut.json")


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d["model"].update(type="Unigram"),
        lambda d: d["model"].pop("vocab"),
        lambda d: d["model"].pop("merges"),
        lambda d: d["model"]["merges"].append(["no", "such"]),
        lambda d: d["model"]["merges"].append("three part merge"),
        lambda d: d["model"]["vocab"].update({"b": d["model"]["vocab"]["a"]}),
        lambda d: d["model"]["vocab"].update({"b": -1}),
        lambda d: d["model"]["vocab"].update({"b": 2**40}),
        lambda d: d.update(pre_tokenizer={"type": "Whitespace", "behaviour": "Removed"}),
        lambda d: d.update(pre_tokenizer={"type": "Blank"}),
        lambda d: d.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}),
        lambda d: d.update(normalizer={"type": "Uppercase"}),
        lambda d: d.update(normaliser=None),
        lambda d: d.update(added_tokens=[{"id": 0, "content": "<clash>"}]),
        lambda d: d.update(added_tokens="none"),
        lambda d: d.update(model=[]),
    ],
)
def test_a_tokenizer_json_that_we_cannot_read_exactly_is_refused(tok: Tokenizer, tmp_path: Path, edit: Any) -> None:
    tok.save(tmp_path / "tokenizer.json")
    document = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    edit(document)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises((ValueError, KeyError)):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(block=st.binary(max_size=200), suffix=st.sampled_from([".json", ".tiktoken", ".gguf", ".model", ""]))
def test_any_bytes_as_a_tokenizer_raise(tmp_path: Path, block: bytes, suffix: str) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(block)
    with pytest.raises((ValueError, OSError)):
        Tokenizer.from_file(path)


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"\xef\xbb\xbf{}", "a byte order mark"), (b" \n", r"b' \\n'"), (b"", "b''"), (b"[1]", r"b'\[1\]'")],
)
def test_a_tokenizer_json_that_is_no_object_says_how_it_begins(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"tokenizer\.json: expected a JSON object, but it begins with {named}"):
        Tokenizer.from_file(tmp_path)


def test_an_empty_folder_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=tmp_path.name):
        Tokenizer.from_file(tmp_path)


def test_lengths_are_hints(tok: Tokenizer) -> None:
    class Long(list):  # type: ignore[type-arg]
        def __init__(self, item: Any) -> None:
            super().__init__([item])

        def __len__(self) -> int:
            return 1 << 62

    class Longer(Sequence[Any]):
        def __init__(self, item: Any) -> None:
            self.item = item

        def __len__(self) -> int:
            return 10**12

        def __getitem__(self, place: Any) -> Any:
            if place > 2:
                raise IndexError
            return self.item

    eye, row = np.eye(2, dtype=np.float32), np.zeros(4, np.float32)
    for sequence in (Long, Longer):
        ids = [64] if sequence is Long else [64] * 3
        assert tok.decode_bytes(sequence(64)) == tok.decode_bytes(ids)
        assert tok.decode(sequence(64)) == tok.decode(ids)
        assert tok.decode_batch(sequence([64])) == [tok.decode([64])] * len(ids)
        assert tok.encode_batch(sequence("low")) == [tok.encode("low")] * len(ids)
        assert Sampler(banned_ids=sequence(1)).banned_ids == [1] * len(ids)
        assert 0 <= Sampler().sample(row, history=sequence(1)) < 4
        assert len(tok.with_tokens(sequence("<new>"))) == len(tok) + 1
        out = np.zeros((1, 2 * len(ids)), np.float32)
        Linear(sequence(eye)).multiply(np.ones((1, 2), np.float32), out)
        assert (out == 1).all()
    with pytest.raises(KeyError, match="is not in this vocabulary"):
        tok.decode(range(10**12))


@pytest.mark.skipif(sys.platform != "linux", reason="sets RLIMIT_AS")
def test_no_memory_is_a_memory_error() -> None:
    """An iterator without end, and an array that is one number repeated: the process goes on."""
    script = """
import itertools, resource
import numpy as np
from bpe_llama import Sampler, Tokenizer
from bpe_llama.educational import EducationalTokenizer
tok = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)} | {b"ab" * 10**5: 256})
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (48 << 20)
resource.setrlimit(resource.RLIMIT_AS, (size, size))
for call in (
    lambda: tok.decode(itertools.repeat(5)),
    lambda: tok.decode_bytes(np.broadcast_to(np.uint32(5), (10**12,))),
    lambda: tok.decode_bytes([256] * 1000),
    lambda: tok.decode([256] * 1000),
    lambda: Sampler(banned_ids=itertools.repeat(5)),
):
    try:
        call()
    except MemoryError as error:
        print(error)
assert tok.decode([97, 98]) == "ab"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert "ids holds" in lines[0] and "ids holds 1000000000000 items" in lines[1]
    assert lines[2] == lines[3] == "there is no memory for the text of 1000 ids"
    assert "banned_ids holds" in lines[4]


def test_long_tokens_load_in_linear_time(tok: Tokenizer, tmp_path: Path) -> None:
    """Quadratic time would be many minutes."""
    long = "ab" * 150_000
    ranks = {**BYTES, b"ab": 256, long.encode(): 257, b"cd" * 90_000: 258, b"e" * 999: 259}
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    (tmp_path / "v.tiktoken").write_text("".join(lines))
    loaded = Tokenizer.from_tiktoken(tmp_path / "v.tiktoken", "cl100k")
    assert loaded.encode(long) == [257]
    assert loaded.encode("abc") == [256, ord("c")]
    for grown in (tok.with_tokens([long]), tok.with_special_tokens([long])):
        grown.save(tmp_path / "tokenizer.json")
        again = Tokenizer.from_file(tmp_path / "tokenizer.json")
        assert again.encode(f"x{long}y", allowed_special="all") == [*tok.encode("x"), len(tok), *tok.encode("y")]
    (tmp_path / "a.txt").write_text(f"x{long}y")
    assert again.encode_files(tmp_path / "a.txt", tmp_path / "ids.npy", eos=False) > 3
    assert WordCounts.from_iterator([f"x{long}y"], special_tokens=[long], progress=False).total == 2


def test_many_special_tokens_are_checked_in_linear_time() -> None:
    names = [f"<{number}>" for number in range(30_000)]
    tok = Tokenizer.train_from_iterator(["low"], 256 + len(names), special_tokens=names, progress=False)
    assert len(tok.special_tokens) == len(names)
    with pytest.raises(ValueError, match='disallowed special token "<20000>" at byte 3'):
        tok.encode("<7><20000>", allowed_special=names[:15_000], disallowed_special="all")


def test_tokens_may_come_from_a_generator(tok: Tokenizer) -> None:
    for add in (tok.with_tokens, tok.with_special_tokens):
        grown = add(name for name in ("<one>", "<two>"))
        assert [grown.added_tokens[name] for name in ("<one>", "<two>")] == [len(tok), len(tok) + 1]


@pytest.mark.parametrize(
    ("beside", "complaint"),
    [
        ({"pattern": None, "special_tokens": {}}, "pattern must be a str, got None"),
        ({"pattern": "cl100k", "special_tokens": {"<s>": 256.5}}, "must be an int, got 256.5"),
        ({"pattern": "cl100k", "special_tokens": None}, "must be a mapping of str to id, got None"),
        ({"pattern": "cl100k", "special_tokens": {"<\ud800>": 256}}, "a special token holds"),
        ({"pattern": "cl100k", "special_tokens": {}, "eos_id": "a"}, "eos_id must be an int, got 'a'"),
        ({"pattern": "cl100k", "special_tokens": {}, "end_ids": "a"}, "end_ids must be a list of ids, got 'a'"),
        ({"pattern": "cl100k", "special_tokens": {}, "pad_id": -1}, "pad_id is -1; expected at least 0"),
    ],
)
def test_the_json_beside_a_tiktoken_file_is_taken_as_it_is(tmp_path: Path, beside: Any, complaint: str) -> None:
    path = tmp_path / "v.tiktoken"
    Tokenizer.from_ranks(BYTES).save(path)
    path.with_name("v.tiktoken.json").write_text(json.dumps(beside))
    with pytest.raises(ValueError, match="expected an object with pattern and special_tokens") as caught:
        Tokenizer.from_file(path)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("field", [{"eos_id": 999}, {"end_ids": [999]}])
def test_an_unknown_id_beside_a_tiktoken_file_is_named(tmp_path: Path, field: dict[str, Any]) -> None:
    path = tmp_path / "v.tiktoken"
    Tokenizer.from_ranks(BYTES).save(path)
    path.with_name("v.tiktoken.json").write_text(json.dumps({"pattern": "cl100k", "special_tokens": {}, **field}))
    with pytest.raises(ValueError, match=r"v\.tiktoken\.json: id 999 is not in this vocabulary of 256 ids"):
        Tokenizer.from_file(path)


def test_ids_are_read_up_to_the_first_unknown_one() -> None:
    """A range of 10**12 ids took hours."""
    tok = Tokenizer.train_from_iterator(["low"], 258, progress=False)
    for decode in (tok.decode, tok.as_tiktoken().decode, EducationalTokenizer.from_tokenizer(tok).decode):
        with pytest.raises(KeyError):
            decode(range(10**12))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("added_tokens", r'not a tokenizer.json: invalid type: string "aaa.* expected .* at line 1 column \d+$'),
        ("model", r'tokenizer.json: model: invalid type: string "aaa.* expected .* at line 1 column \d+$'),
        ("normalizer", "tokenizer.json: normalizer is "),
        ("post_processor", "tokenizer.json: post_processor is "),
    ],
)
def test_a_message_quotes_the_ends_of_a_long_value(tmp_path: Path, field: str, message: str) -> None:
    file = json.loads(Tokenizer.train_from_iterator(["low"], 257, progress=False).to_huggingface())
    (tmp_path / "tokenizer.json").write_text(json.dumps(file | {field: "a" * 100_000}))
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert len(str(caught.value)) < 1000


def test_bytes_that_are_no_text_where_a_piece_alone_has_other_ids(tmp_path: Path) -> None:
    """An index fell below zero: where a normalizer, a look-behind or an added token reads over the start of a piece."""
    bytes_of = {bytes([byte]): byte for byte in range(256)}
    behind = Tokenizer.from_ranks({**bytes_of, b"bcdef": 256}, pattern=r"(?<=a)bcdef|.", special_tokens={})
    ids = behind.encode_bytes(b"abcdef\xff")
    assert ids == list(b"abcdef\xff") == behind.as_tiktoken()._encode_bytes(b"abcdef\xff")
    assert behind.encode_ordinary("abcdef") == [ord("a"), 256]
    added = Tokenizer.from_ranks(bytes_of, pattern="cl100k", special_tokens={}).with_tokens(["a zqx"])
    assert added.encode_bytes(b"a zqx\xff") == [256, 0xFF]
    composed = Tokenizer.train_from_iterator(["\u00e9 \u00e9"] * 9, 258, progress=False)
    composed.save(tmp_path / "t.json")
    file = json.loads((tmp_path / "t.json").read_text("utf-8"))
    (tmp_path / "t.json").write_text(json.dumps(file | {"normalizer": {"type": "NFC"}}), encoding="utf-8")
    normal = Tokenizer.from_file(tmp_path / "t.json")
    ids = normal.encode_bytes("x e\u0301".encode() + b"\xff")
    assert normal.decode_bytes(ids) == "x \u00e9".encode() + b"\xff"


def test_a_stream_goes_on_after_an_unknown_id(tmp_path: Path) -> None:
    theirs = pytest.importorskip("tokenizers").Tokenizer.from_str(
        json.dumps(
            {
                "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}, "merges": []},
                "decoder": {"type": "Fuse"},
                "added_tokens": [],
            }
        )
    )
    theirs.save(str(tmp_path / "t.json"))
    stream = Tokenizer.from_file(tmp_path / "t.json").decode_stream()
    assert stream.push(0) == "a"
    with pytest.raises(KeyError, match="id 99"):
        stream.push(99)
    assert [stream.push(1), stream.push(2)] == ["b", "c"]


def test_ids_around_a_text_may_have_the_same_text() -> None:
    tok = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)}, pattern="cl100k", special_tokens={})
    framed = Tokenizer(tok.with_template(0x80, 0x81))
    assert framed(["A"])["input_ids"] == [[0x80, ord("A"), 0x81]]


def test_a_dropout_of_zero_is_none() -> None:
    """Also where merges do not reach a token, which `ignore_merges` finds."""
    ranks = {**{bytes([byte]): byte for byte in range(256)}, b"abc": 300}
    tok = Tokenizer.from_ranks(ranks, pattern="cl100k", special_tokens={})
    assert tok.encode("abc") == tok.encode_with_dropout("abc", dropout=0.0, seed=1) == [300]
    assert tok.encode_with_dropout("abc", dropout=1.0, seed=1) == [97, 98, 99]
