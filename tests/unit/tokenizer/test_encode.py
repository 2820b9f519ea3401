"""Every way of encoding gives the same ids, in the type it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpe_llama import Tokenizer

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=50)


def test_a_list_of_plain_integers(tok: Tokenizer) -> None:
    ids = tok.encode("def main():\n    pass\n")
    assert type(ids) is list
    assert all(type(i) is int for i in ids)
    assert 0 < len(ids) < 20


def test_the_empty_text_has_no_ids(tok: Tokenizer) -> None:
    assert tok.encode("") == []
    assert tok.encode_to_numpy("").shape == (0,)
    assert tok.count("") == 0
    assert tok.encode_batch([]) == []
    assert tok.encode_batch(["", "a", ""]) == [[], tok.encode("a"), []]


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
def test_all_ways_agree_and_decode_to_the_text(tok: Tokenizer, text: str) -> None:
    ids = tok.encode(text)
    assert tok.encode_ordinary(text) == ids
    assert tok.encode_bytes(text.encode()) == ids
    assert tok.encode_to_numpy(text).tolist() == ids
    assert tok.encode_batch([text, text]) == [ids, ids]
    assert tok.count(text) == len(ids)
    assert tok.decode(ids) == text
    assert b"".join(tok.id_to_bytes(i) for i in ids) == text.encode()


def test_numpy_dtypes_and_shapes(tok: Tokenizer, corpus: list[str]) -> None:
    array = tok.encode_to_numpy(corpus[0])
    assert array.dtype == np.uint32 and array.ndim == 1 and array.flags.c_contiguous
    assert array.flags.writeable, "the caller owns it"
    assert array.tolist() == tok.encode(corpus[0])


@pytest.mark.parametrize("num_threads", [None, 1, 2, 5])
def test_batches_keep_their_order(tok: Tokenizer, corpus: list[str], num_threads: int | None) -> None:
    rows = [corpus[0][i : i + 1 + i % 700] for i in range(0, 20_000, 97)] + ["", corpus[1]]
    expected = [tok.encode(row) for row in rows]
    assert tok.encode_batch(rows, num_threads=num_threads) == expected
    ids, offsets = tok.encode_batch_to_numpy(rows)
    assert ids.dtype == np.uint32 and offsets.dtype == np.int64
    assert offsets.shape == (len(rows) + 1,) and offsets[0] == 0 and offsets[-1] == len(ids)
    assert [ids[offsets[i] : offsets[i + 1]].tolist() for i in range(len(rows))] == expected


def test_bos_and_eos(tok: Tokenizer) -> None:
    ids = tok.encode("some text")
    assert tok.bos_id == tok.special_tokens[BOS] and tok.eos_id == tok.special_tokens[EOS]
    assert tok.encode("some text", bos=True) == [tok.bos_id, *ids]
    assert tok.encode("some text", eos=True) == [*ids, tok.eos_id]
    assert tok.encode("", bos=True, eos=True) == [tok.bos_id, tok.eos_id]


def test_special_token_text_is_ordinary_unless_allowed(tok: Tokenizer) -> None:
    text = f"a{BOS}b{EOS}"
    specials = set(tok.special_tokens.values())
    assert not specials & set(tok.encode(text))
    assert not specials & set(tok.encode_ordinary(text))
    assert not specials & set(tok.encode_bytes(text.encode()))
    assert not specials & set(tok.encode_to_numpy(text).tolist())
    assert not specials & {i for row in tok.encode_batch([text]) for i in row}
    assert tok.encode(text, allowed_special="all") == [*tok.encode("a"), tok.bos_id, *tok.encode("b"), tok.eos_id]
    only_eos = tok.encode(text, allowed_special={EOS})
    assert only_eos == [*tok.encode(f"a{BOS}b"), tok.eos_id]
    with pytest.raises(ValueError, match="begin_of_text"):
        tok.encode(text, disallowed_special={BOS})
    with pytest.raises(ValueError, match="end_of_text"):
        tok.encode(text, allowed_special={BOS}, disallowed_special="all")


def test_an_unknown_special_token_is_named(tok: Tokenizer) -> None:
    with pytest.raises((KeyError, ValueError), match="no such token"):
        tok.encode("text", allowed_special={"<|no such token|>"})


def test_offsets_cut_the_text(tok: Tokenizer, corpus: list[str]) -> None:
    text = corpus[0][:5000]
    ids, offsets = tok.encode_with_offsets(text)
    assert list(ids) == tok.encode(text)
    assert "".join(text[start:end] for start, end in offsets) == text
    assert [text[start:end].encode() for start, end in offsets] == [tok.id_to_bytes(i) for i in ids]


def test_offsets_of_a_split_character_are_that_character(bytes_only: Tokenizer) -> None:
    ids, offsets = bytes_only.encode_with_offsets("aé😀b")
    assert len(ids) == 1 + 2 + 4 + 1
    assert [tuple(o) for o in offsets] == [(0, 1), *[(1, 2)] * 2, *[(2, 3)] * 4, (3, 4)]


@settings(max_examples=100, deadline=None)
@given(text=ANY_TEXT, max_tokens=st.integers(0, 20))
def test_truncate_keeps_the_longest_prefix_that_fits(tok: Tokenizer, text: str, max_tokens: int) -> None:
    short = tok.truncate(text, max_tokens=max_tokens)
    assert text.startswith(short)
    assert tok.count(short) <= max_tokens
    if tok.count(text) <= max_tokens:
        assert short == text


def test_truncate_never_cuts_a_character(bytes_only: Tokenizer) -> None:
    assert bytes_only.truncate("a😀b", max_tokens=4) == "a"
    assert bytes_only.truncate("a😀b", max_tokens=5) == "a😀"


def test_tokenize_gives_the_pieces(tok: Tokenizer) -> None:
    text = "def encode(self):"
    assert b"".join(tok.tokenize(text)) == text.encode()
    assert len(tok.tokenize(text)) == tok.count(text)


def test_the_call_pads_and_truncates_as_transformers_does(tok: Tokenizer) -> None:
    texts = ["one", "one two three four five", ""]
    batch = tok(texts, padding=True, truncation=True, max_length=4, return_tensors="np")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.shape == mask.shape == (3, 4)
    assert ids.dtype == mask.dtype == np.int64
    rows = [tok.encode(text)[:4] for text in texts]
    assert [row[keep == 1].tolist() for row, keep in zip(ids, mask, strict=True)] == rows
    assert mask.sum(axis=1).tolist() == [len(row) for row in rows]
    plain = tok(texts)
    assert plain["input_ids"] == [tok.encode(text) for text in texts]
    assert plain["attention_mask"] == [[1] * len(tok.encode(text)) for text in texts]
    assert tok("one")["input_ids"] == tok.encode("one")


def test_the_call_makes_torch_tensors(tok: Tokenizer) -> None:
    torch = pytest.importorskip("torch", reason="needs bpe_llama[model]")
    batch = tok(["one", "one two"], padding=True, return_tensors="pt")
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].shape == batch["attention_mask"].shape


def test_ragged_rows_cannot_become_one_array(tok: Tokenizer) -> None:
    with pytest.raises(ValueError, match="padding"):
        tok(["one", "one two three"], return_tensors="np")


def test_any_bytes_come_back(tok: Tokenizer) -> None:
    for block in (b"", b"\xff", b"\xf0\x9f", bytes(range(256)) * 3, b"ok \xe2\x28\xa1 ok"):
        assert tok.decode_bytes(tok.encode_bytes(block)) == block


def test_lone_surrogates_become_replacement_characters(tok: Tokenizer) -> None:
    assert tok.encode("a\ud800b") == tok.encode("a\ufffdb")
    assert tok.encode("\ud83d\ude00") == tok.encode("😀"), "a pair is one character, as tiktoken reads it"


@settings(max_examples=200, deadline=None)
@given(text=st.text("a😀\ud800\ud83d\udbff\ude00\udc00\udfff", max_size=8))
def test_surrogates_are_joined_as_utf16_joins_them(tok: Tokenizer, text: str) -> None:
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tok.encode(text) == tok.encode(joined)
    for max_tokens in range(4):  # what is left is the caller's own text
        kept = tok.truncate(text, max_tokens)
        assert text.startswith(kept) and tok.encode(kept) == tok.encode(tok.truncate(joined, max_tokens))
    assert tok.truncate(text, 99) == text == "".join(tok.split_by_tokens(text, 5))


def test_offsets_are_those_of_the_text_before_surrogates_are_joined(tok: Tokenizer) -> None:
    text, joined = "a\ud83d\ude00 b\ud800c\ude00\ud83d\ud83d\ude00d", "a😀 b\ufffdc\ufffd\ufffd😀d"
    ids, offsets = tok.encode_with_offsets(text)
    assert ids == tok.encode(joined) and offsets[-1] == (len(text) - 1, len(text)) == (11, 12)
    places = [at for at, character in enumerate(joined) for _ in range(1 + (character == "😀"))]
    for (start, end), (first, last) in zip(offsets, tok.encode_with_offsets(joined)[1], strict=True):
        assert (places[start], places[end - 1]) == (first, last - 1)
        assert start == 0 or places[start - 1] < first  # both halves, never one


def test_nul_is_a_character_like_others(tok: Tokenizer) -> None:
    for text in ("\0", "\0" * 1000, "a\0b", "word \0\0 word\0", "日\0本"):
        ids = tok.encode(text)
        assert tok.decode(ids) == text
        assert tok.encode_bytes(text.encode()) == ids == tok.encode_to_numpy(text).tolist()
        assert tok.count(text) == len(ids)


def test_a_very_long_text_is_encoded_as_its_parts_are(tok: Tokenizer, corpus: list[str]) -> None:
    # It ends in a letter and begins with another's white space: pieces end where the copies meet.
    part = "\n" + "".join(corpus) + "\0 \ufffd the end"
    copies = 64_000_000 // len(part.encode()) + 1
    expected = tok.encode_to_numpy(part)
    text = part * copies
    for ids in (tok.encode_to_numpy(text), tok.encode_batch_to_numpy([text], num_threads=2)[0]):
        assert ids.dtype == np.uint32
        assert len(ids) == copies * len(expected)
        assert (ids.reshape(copies, -1) == expected).all()
    assert tok.count(text) == len(ids)
    assert tok.decode_bytes(ids) == text.encode()


def test_a_list_of_many_ids_holds_those_of_the_array(bytes_only: Tokenizer) -> None:
    # Above 4 MB, the pointers of a list are advised to be in huge pages.
    text = "0123456789" * 60_000
    ids = bytes_only.encode(text)
    assert len(ids) == 600_000 and ids == bytes_only.encode_to_numpy(text).tolist()


def test_custom_regexes(corpus: list[str]) -> None:
    words = Tokenizer.train_from_iterator(corpus, vocab_size=400, pattern=r"\w+|\W")
    text = "some text, some_more"
    assert words.decode(words.encode(text)) == text
    assert words.pattern == r"\w+|\W"
