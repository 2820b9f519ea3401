"""Ids back to bytes and text, whole and streamed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpe_llama import Tokenizer


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
