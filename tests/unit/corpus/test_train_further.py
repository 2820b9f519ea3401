"""Training on from a vocabulary, and superwords: ids, special tokens, errors, the command line."""

from __future__ import annotations

import json

import pytest
import tokenizers

from bpe_llama import Tokenizer, WordCounts, cli
from bpe_llama.chat import with_chat_template
from bpe_llama.training import SUPERWORD_PATTERN

TEXTS = ["low lower lowest newer newest, by the way", "wide wider widest <|end|> low low by the way"] * 5


def train(texts=TEXTS, vocab_size=270, **options):
    return Tokenizer.train_from_iterator(texts, vocab_size, progress=False, **options)


def test_all_ids_of_the_base_stay_and_special_tokens_keep_theirs():
    base = train(special_tokens=["<|end|>", "<|end_of_text|>"])
    tok = train(vocab_size=280, base=base, special_tokens=["<|end|>", "<|more|>", "<|begin_of_text|>"])
    assert tok.vocab_size == 280
    assert [tok.id_to_bytes(id) for id in range(270)] == [base.id_to_bytes(id) for id in range(270)]
    assert tok.special_tokens == {"<|end|>": 268, "<|end_of_text|>": 269, "<|more|>": 278, "<|begin_of_text|>": 279}
    assert (tok.bos_id, tok.eos_id) == (279, 269)
    # Apart from where special tokens stand, it is what one go gives.
    whole = train(vocab_size=278, special_tokens=["<|end|>", "<|end_of_text|>"])
    assert tok.merges == whole.merges
    assert list(tok.mergeable_ranks) == list(whole.mergeable_ranks)
    assert "<|end|>" not in "".join(map(str, tok.mergeable_ranks))


def test_a_saved_base_is_extended_like_the_original(tmp_path):
    base = train(special_tokens=["<|end|>"], pattern="cl100k")
    base.save(tmp_path / "base.json")
    loaded = Tokenizer.from_file(tmp_path / "base.json")
    loaded.chat_template = "{{ messages }}"
    tok = train(vocab_size=280, base=loaded)
    assert (tok.pattern_name, tok.chat_template) == ("cl100k", "{{ messages }}")
    assert train(vocab_size=280, base=base, pattern="cl100k").merges == tok.merges
    tok.save(tmp_path / "tokenizer.json")
    again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert (again.merges, again.special_tokens) == (tok.merges, tok.special_tokens)
    ranks = Tokenizer.from_ranks(base.mergeable_ranks, pattern="cl100k", special_tokens={"<|end|>": 269})
    assert train(vocab_size=280, base=ranks).mergeable_ranks == tok.mergeable_ranks


def test_other_text_adds_other_tokens():
    base = train(["abab"] * 3, 258)
    tok = train(["cdcd abab"] * 3, 261, base=base)
    assert tok.merges[:2] == base.merges
    assert (b"c", b"d") in tok.merges


def test_files_and_counts_go_on_alike(tmp_path):
    for index, text in enumerate(TEXTS):
        (tmp_path / f"{index}.txt").write_text(text, encoding="utf-8")
    base = train(special_tokens=["<|end|>"])
    expected = train(vocab_size=280, base=base)
    assert Tokenizer.train(tmp_path, 280, base=base, progress=False).mergeable_ranks == expected.mergeable_ranks
    counts = WordCounts.from_iterator(TEXTS, special_tokens=["<|end|>"], progress=False)
    tok = Tokenizer.train_from_counts(counts, 280, base=base, progress=False)
    assert (tok.mergeable_ranks, tok.special_tokens) == (expected.mergeable_ranks, expected.special_tokens)
    superwords = train(vocab_size=280, superword_from=268)
    assert Tokenizer.train(tmp_path, 280, superword_from=268, progress=False).merges == superwords.merges


def test_superwords_cross_words_but_not_lines_digits_or_special_tokens():
    texts = ["by the way\nby the way 123456 by the way <|end|> by the way ... ok"] * 20
    tok = train(texts, 276, superword_from=262, special_tokens=["<|end|>"])
    assert tok.special_tokens == {"<|end|>": tok.vocab_size - 1}
    assert tok.pattern == SUPERWORD_PATTERN
    tokens = list(tok.mergeable_ranks)
    assert b"by the way" in tokens
    assert not any(b"\n" in token and len(token) > 1 for token in tokens)
    assert not any(b"1234" in token or b"y 1" in token or b"end" in token or b"y .." in token for token in tokens)
    assert len(tok.encode("by the way")) == 1


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"vocab_size": 270}, "vocab_size is 270; it must be at least 271: the base has 270 ids"),
        ({"vocab_size": 271, "special_tokens": ["x"]}, "at least 272"),
        ({"vocab_size": 280, "pattern": "o200k"}, "pattern is 'o200k', but the base's is 'llama3'"),
        (
            {"vocab_size": 280, "superword_from": 270},
            "superword_from is 270; it must be at least 271 and less than 280",
        ),
        ({"vocab_size": 280, "superword_from": 280}, "superword_from is 280"),
    ],
)
def test_bad_values(options, what):
    base = train(special_tokens=["<|end|>"])
    with pytest.raises(ValueError, match=what):
        train(base=base, **options)


def test_superwords_need_the_text_twice():
    with pytest.raises(ValueError, match="read only once"):
        train(iter(TEXTS), superword_from=260)


def test_counts_of_another_pattern_do_not_fit_the_base():
    counts = WordCounts.from_iterator(TEXTS, pattern="r50k", progress=False)
    with pytest.raises(ValueError, match="but the base's is 'llama3'"):
        Tokenizer.train_from_counts(counts, 280, base=train(), progress=False)


def test_a_base_may_have_tokens_without_merges():
    ranks = {bytes([byte]): byte + 3 for byte in range(256)}
    base = Tokenizer.from_ranks({**ranks, b"abc": 300}, pattern="llama3", special_tokens={"<|end|>": 400})
    tok = train(["abc abcd abcd"], 404, base=base)
    assert tok.encode("abc") == [300]  # the whole piece, whatever may merge
    assert list(tok.mergeable_ranks.items())[257:] == [(b" a", 401), (b"bc", 402), (b" abc", 403)]
    assert tok.encode(" abcd") == [403, ord("d") + 3]
    assert tok.special_tokens == {"<|end|>": 400}


def test_tokens_added_to_the_base_are_not_learned_again(tmp_path):
    train(["a"], 256).save(tmp_path / "base.json")
    content = json.loads((tmp_path / "base.json").read_text(encoding="utf-8"))
    content["added_tokens"] = [{"id": 256, "content": "foo", "special": False, "normalized": False}]
    content["added_tokens"][0].update(dict.fromkeys(("single_word", "lstrip", "rstrip"), False))
    (tmp_path / "base.json").write_text(json.dumps(content), encoding="utf-8")
    base = Tokenizer.from_file(tmp_path / "base.json")
    assert (base.added_tokens, base.special_tokens) == ({"foo": 256}, {})
    tok = train(["foo foobar bar"] * 5, 260, base=base, special_tokens=["foo", "<|end|>"])
    assert tok.added_tokens == {"foo": 256, "<|end|>": 259}
    assert [tok.id_to_bytes(id) for id in (257, 258)] == [b"ar", b"bar"]
    tok.save(tmp_path / "tok.json")
    assert Tokenizer.from_file(tmp_path / "tok.json").encode("foobar") == [256, 258]


def test_training_ends_with_a_base_of_tokens_without_merges(tmp_path):
    """The most frequent pairs are tokens already, and 256 times as frequent as all others."""
    letters = "abcdfgijklmnopqrsuvwxyz"
    words = " ".join("".join(letters[(i * 7 + j * j * i) % 23] for j in range(8)) for i in range(9000))
    train(["a"], 256).save(tmp_path / "base.json")
    content = json.loads((tmp_path / "base.json").read_text(encoding="utf-8"))
    content["model"]["vocab"] |= {"th": 256, "he": 257}
    (tmp_path / "base.json").write_text(json.dumps(content), encoding="utf-8")
    base = Tokenizer.from_file(tmp_path / "base.json")
    assert len(base.encode("the")) == 3
    tok = train(["the\n" * 300_000, words], 270, base=base)
    assert tok.vocab_size == 270


def test_a_base_without_some_byte():
    ranks = {bytes([byte]): byte for byte in range(256) if byte != ord("x")}
    base = Tokenizer.from_ranks(ranks, pattern="llama3")
    assert train(["abab"], 257, base=base).id_to_bytes(256) == b"ab"
    with pytest.raises(ValueError, match="0x78"):
        train(["abab x ax"], 257, base=base)


def with_parts(base, path, **parts):
    """Return a tokenizer whose tokenizer.json is that of `base` but for some parts."""
    base.save(path)
    file = json.loads(path.read_text(encoding="utf-8"))
    parts["model"] = file["model"] | parts.get("model", {})
    path.write_text(json.dumps(file | parts), encoding="utf-8")
    return Tokenizer.from_file(path)


def test_what_the_file_of_the_base_says_goes_on(tmp_path):
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 268}
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}]}
    decoder["decoders"][0]["use_regex"] = True
    decoder["decoders"].append({"type": "Replace", "pattern": {"String": "low"}, "content": "high"})
    parts = {"padding": padding | {"pad_type_id": 0, "pad_token": "<|end|>"}, "decoder": decoder}
    parts["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    base = with_parts(train(special_tokens=["<|end|>", "<é>"]), tmp_path / "t.json", **parts)
    for options in ({}, {"superword_from": 275}):
        tok = train(vocab_size=280, base=base, **options)
        tok.save(tmp_path / "more.json")
        file = json.loads((tmp_path / "more.json").read_text(encoding="utf-8"))
        assert {key: file[key] for key in parts} == parts
        assert (tok.pipeline, tok.pad_id, tok.vocab_size) == ("fast", 268, 280)
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "more.json"))
        for text in [TEXTS[0], "e\u0301 low", "wide <|end|><é>"]:
            ids = tok.encode(text, allowed_special="all")
            assert ids == theirs.encode(text).ids
            assert tok.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert "high" in tok.decode(tok.encode("low"))


def test_what_stands_beside_the_file_of_the_base_goes_on(tmp_path):
    base = with_chat_template(train(special_tokens=["<mask>"]), "chatml", add_tokens=True)
    base.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mask_token": "<mask>", "model_max_length": 5}))
    base = Tokenizer.from_file(tmp_path)
    assert base.end_ids and base.mask_id is not None
    counts = WordCounts.from_iterator(TEXTS, special_tokens=list(base.added_tokens), progress=False)
    for tok in (
        train(vocab_size=280, base=base),
        Tokenizer.train_from_counts(counts, 280, base=base, special_tokens=(), progress=False),
    ):
        assert (tok.end_ids, tok.mask_id, tok.chat_template) == (base.end_ids, base.mask_id, base.chat_template)
        assert tok(TEXTS[0], truncation=True)["input_ids"] == tok(TEXTS[0], max_length=5)["input_ids"]


def test_a_base_that_drops_bytes_still_drops_them_when_extended(tmp_path):
    vocab = {token: i for i, token in enumerate(["l", "o", "w", "Ġ", "lo"])}
    model = {"vocab": vocab, "merges": [["l", "o"]]}
    base = with_parts(train(["low"], 257, pattern="r50k"), tmp_path / "t.json", model=model, added_tokens=[])
    assert base.decode(base.encode("xlow")) == "low"
    tok = train(["low low low"], 6, base=base)
    tok.save(tmp_path / "more.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "more.json"))
    ids = tok.encode("xlow low")
    assert ids == theirs.encode("xlow low").ids == [5, 3, 5]
    assert tok.decode(ids) == theirs.decode(ids) == "low low"


def test_a_base_that_training_cannot_extend_is_refused(tmp_path):
    base = with_parts(train(), tmp_path / "t.json", normalizer={"type": "Lowercase"})
    with pytest.raises(ValueError, match="the base asks for the normalizer Lowercase, which training does not know"):
        train(vocab_size=280, base=base)


def test_too_few_pairs_warn():
    base = train(["ab"], 257)
    with pytest.warns(UserWarning, match="vocab_size 400: the vocabulary has 257 tokens") as caught:
        assert train(["ab"], 400, base=base).merges == base.merges
    assert caught[0].filename == __file__


def test_command_line(tmp_path, capsys):
    corpus, first, second, third = (tmp_path / name for name in ("corpus.txt", "a.json", "b.json", "c.json"))
    corpus.write_text("\n".join(TEXTS), encoding="utf-8")
    command = ["train-tokenizer", str(corpus), "--vocab-size"]
    assert cli.main([*command, "262", "--special", "<|end|>", "--out", str(first)]) == 0
    assert cli.main([*command, "270", "--base", str(first), "--out", str(second)]) == 0
    assert cli.main([*command, "270", "--superword-from", "262", "--out", str(third)]) == 0
    base, tok = Tokenizer.from_file(first), Tokenizer.from_file(second)
    assert tok.special_tokens == base.special_tokens
    assert tok.merges[: len(base.merges)] == base.merges
    assert Tokenizer.from_file(third).pattern == SUPERWORD_PATTERN
    assert cli.main([*command, "262", "--base", str(first)]) == 2
    assert "at least 263" in capsys.readouterr().err
