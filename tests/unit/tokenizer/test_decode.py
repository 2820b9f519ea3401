"""Ids back to bytes and text, whole and streamed."""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpe_llama import Sampler, Tokenizer


def test_decode_replaces_what_is_no_utf8(bytes_only: Tokenizer) -> None:
    ids = [bytes_only.token_to_id(bytes([b])) for b in b"a\xf0\x9fb"]
    assert bytes_only.decode(ids) == b"a\xf0\x9fb".decode("utf-8", "replace")
    assert bytes_only.decode(ids, errors="ignore") == "ab"
    assert bytes_only.decode_bytes(ids) == b"a\xf0\x9fb"
    with pytest.raises(UnicodeDecodeError):
        bytes_only.decode(ids, errors="strict")


def test_decode_batch(tok: Tokenizer) -> None:
    texts = ["one", "", "two 😀"]
    assert tok.decode_batch(tok.encode_batch(texts)) == texts


def test_decode_takes_arrays(tok: Tokenizer) -> None:
    assert tok.decode(tok.encode_to_numpy("some text")) == "some text"
    assert tok.decode(tok.encode_to_numpy("some text").astype("int64")) == "some text"
    assert tok.decode(tuple(tok.encode("some text"))) == "some text"


def test_special_tokens_decode_to_their_names(tok: Tokenizer) -> None:
    assert tok.decode([tok.bos_id, *tok.encode("x"), tok.eos_id]) == "<|begin_of_text|>x<|end_of_text|>"


def test_ids_and_bytes_are_one_to_one(tok: Tokenizer) -> None:
    tokens = [tok.id_to_bytes(i) for i in range(tok.vocab_size)]
    assert len(set(tokens)) == tok.vocab_size == 1000
    assert [tok.token_to_id(token) for token in tokens] == list(range(tok.vocab_size))
    assert tok.mergeable_ranks == {token: i for i, token in enumerate(tokens[:-2])}
    assert tok.special_tokens == {"<|begin_of_text|>": 998, "<|end_of_text|>": 999}


def test_the_first_ids_are_bytes_in_printable_first_order(tok: Tokenizer) -> None:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = printable + [b for b in range(256) if b not in printable]
    assert [tok.id_to_bytes(i) for i in range(256)] == [bytes([b]) for b in order]


def test_merges_rebuild_the_vocabulary(tok: Tokenizer) -> None:
    merges = tok.merges
    assert len(merges) == 1000 - 256 - 2
    assert [left + right for left, right in merges] == [tok.id_to_bytes(i) for i in range(256, 998)]


def test_a_stream_holds_back_half_a_character(bytes_only: Tokenizer) -> None:
    stream = bytes_only.decode_stream()
    out = [stream.push(bytes_only.token_to_id(bytes([b]))) for b in "a😀é".encode()]
    assert out == ["a", "", "", "", "😀", "", "é"]
    assert stream.flush() == ""
    stream.push(bytes_only.token_to_id(b"\xf0"))
    assert stream.flush() == "\ufffd"


@settings(max_examples=200, deadline=None)
@given(block=st.binary(max_size=40))
def test_a_stream_equals_decode(bytes_only: Tokenizer, block: bytes) -> None:
    ids = bytes_only.encode_bytes(block)
    stream = bytes_only.decode_stream()
    assert "".join(stream.push(i) for i in ids) + stream.flush() == bytes_only.decode(ids)


def test_streams_do_not_share_state(bytes_only: Tokenizer) -> None:
    one, two = bytes_only.decode_stream(), bytes_only.decode_stream()
    assert one.push(bytes_only.token_to_id(b"\xc3")) == ""
    assert two.push(bytes_only.token_to_id(b"a")) == "a"
    assert one.push(bytes_only.token_to_id(b"\xa9")) == "é"


class LiesAboutItsLength(list[int]):
    """A list that claims more than any memory holds: a length is only a hint."""

    def __len__(self) -> int:
        return sys.maxsize


def test_decode_batch_takes_arrays_tensors_and_generators_of_rows(bytes_only: Tokenizer) -> None:
    rows = [[72, 73], [74, 75]]
    expected = bytes_only.decode_batch(rows)
    assert expected == [bytes_only.decode(row) for row in rows]
    for dtype in ("uint16", "uint32", "int32", "int64", "uint64"):
        assert bytes_only.decode_batch(np.array(rows, dtype)) == expected, dtype
    torch = pytest.importorskip("torch")
    assert bytes_only.decode_batch(torch.tensor(rows)) == expected
    assert bytes_only.decode_batch([torch.tensor(row) for row in rows]) == expected
    assert bytes_only.decode_batch(row for row in rows) == expected
    assert bytes_only.decode_batch((id_ for id_ in row) for row in rows) == expected
    assert bytes_only.decode_batch(np.array(rows)[:, ::-1]) == [text[::-1] for text in expected]
    assert bytes_only.decode_batch(()) == bytes_only.decode_batch(np.zeros((0, 3), "int64")) == []
    assert bytes_only.decode_batch(np.zeros((2, 0), "int64")) == ["", ""]


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (np.array([72, 73], "uint32"), TypeError, r"row 0: ids must be an iterable of ints, got (np\.uint32\()?72"),
        (np.array(72), TypeError, r"batch must be an iterable of rows of ids, got array\(72\)"),
        (72, TypeError, "batch must be an iterable of rows of ids, got 72"),
        ("72", TypeError, "batch must be an iterable of rows of ids, got '72'"),
        ([[72], 73], TypeError, "row 1: ids must be an iterable of ints, got 73"),
        ([[72], None], TypeError, "row 1: ids must be an iterable of ints, got None"),
        ([[72], [72.0]], TypeError, r"row 1: ids holds 72\.0; expected an iterable of ints"),
        (np.zeros((1, 1, 1), "int64"), TypeError, r"row 0: ids holds \[0\]; expected an iterable of ints"),
        ([[72], [72], [300]], KeyError, "row 2: id 300 is not in this vocabulary of 256 ids"),
        (np.array([[72], [-1]]), KeyError, "row 1: id -1 is not in this vocabulary"),
    ],
)
def test_decode_batch_names_the_row_that_is_wrong(
    bytes_only: Tokenizer, batch: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        bytes_only.decode_batch(batch)


def test_what_a_generator_of_rows_raises_comes_through(bytes_only: Tokenizer) -> None:
    def rows() -> Iterator[list[int]]:
        yield [72]
        raise ZeroDivisionError("in the generator")

    with pytest.raises(ZeroDivisionError, match=r"^in the generator$"):
        bytes_only.decode_batch(rows())


def test_a_length_is_only_a_hint(bytes_only: Tokenizer) -> None:
    assert bytes_only.decode(LiesAboutItsLength([72, 73])) == bytes_only.decode([72, 73])
    assert bytes_only.decode_batch([LiesAboutItsLength([72, 73])]) == [bytes_only.decode([72, 73])]


def test_decoding_ends_at_the_first_unknown_id(bytes_only: Tokenizer) -> None:
    message = "id 256 is not in this vocabulary of 256 ids"
    with pytest.raises(KeyError, match=message):
        bytes_only.decode(range(10**12))
    with pytest.raises(KeyError, match=message):
        bytes_only.decode_bytes(itertools.count())
    with pytest.raises(KeyError, match=f"row 1: {message}"):
        bytes_only.decode_batch([[72], range(10**12)])
    with_a_gap = Tokenizer.from_ranks({bytes([b]): b for b in range(256)}, special_tokens={"<|end|>": 300})
    with pytest.raises(KeyError, match="id 256 is not in this vocabulary of 301 ids"):
        with_a_gap.decode(range(10**12))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no timer signal")
@pytest.mark.parametrize(
    "call",
    [
        lambda tok: tok.decode(itertools.repeat(72, 10**9)),
        lambda tok: tok.encode("a", allowed_special=itertools.repeat("<s>")),
        lambda _: Sampler().sample(np.zeros(8, np.float32), history=range(10**12)),
        lambda _: Sampler(banned_ids=itertools.repeat(1)),
    ],
)
def test_an_iterable_without_end_can_be_interrupted(bytes_only: Tokenizer, call: Callable[[Tokenizer], object]) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            call(bytes_only)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
