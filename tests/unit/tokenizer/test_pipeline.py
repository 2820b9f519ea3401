"""Files that once gave other ids without a word: each kind with its right value."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Theirs
from transformers import AutoTokenizer

from bpe_llama import Tokenizer, _core
from tests.unit.tokenizer.described import BYTE_LEVEL, both, described


@pytest.mark.parametrize(
    ("regex", "merge", "text", "ids"),
    [
        (r"\s+$|\s|\S+", ["Ġ", "Ġ"], "a  \nb", [64, 256, 198, 65]),  # `$` at the end of a line
        (r"^\s+|\s|\S+", ["Ġ", "Ġ"], "a\n  b", [64, 198, 256, 65]),
        (r"\w+|\W", ["b", "â"], "b\u200cc", [65, 158, 222, 234, 66]),  # `\w` without the characters that join
        (r"[[:alpha:]]+|.", ["a", "Ã"], "aé", [256, 102]),
        (r"\d{3}+|.", ["3", "4"], "123456", [16, 17, 256, 20, 21]),  # repeats again, and is not possessive
    ],
)
def test_a_regex_has_the_meaning_of_oniguruma(
    regex: str, merge: list[str], text: str, ids: list[int], tmp_path: Path
) -> None:
    assert both(described({"Regex": regex}, merge), text, tmp_path) == (ids, ids)


@pytest.mark.parametrize(
    ("pattern", "merge", "text", "ids"),
    [
        ({"String": "_"}, ["a", "b"], "ab_ab", [256, 62, 256]),
        ({"Regex": "SEP"}, ["a", "b"], "abSEPab", [256, 50, 36, 47, 256]),
        ({"String": "llama3"}, ["1", "2"], "1234", [256, 18, 19]),  # not the pattern of that name
        ({"String": "cl100k"}, ["3", "4"], "1234", [16, 17, 256]),
    ],
)
def test_a_literal_is_no_name_and_no_regex(
    pattern: dict[str, str], merge: list[str], text: str, ids: list[int], tmp_path: Path
) -> None:
    assert both(described(pattern, merge), text, tmp_path) == (ids, ids)


def test_an_added_token_with_merges(tmp_path: Path) -> None:
    file = described({"Regex": r"\s|\S+"}, ["#", "#"], ({"content": "##", "id": 256},))
    assert both(file, "## x", tmp_path) == ([256, 220, 87], [256, 220, 87])


@pytest.mark.parametrize(
    ("added", "normalizer", "text", "ids"),
    [
        (
            ({"content": "  ", "normalized": True, "special": False}, {"content": "[MASK]", "lstrip": True}),
            None,
            "is  [MASK].",
            [72, 82, 258, 13],
        ),
        (({"content": "ab<", "normalized": True, "special": False}, {"content": "<x>"}), None, "ab<x>", [256, 258]),
        (({"content": "café", "normalized": True, "special": False},), {"type": "NFC"}, "cafe\u0301", [257]),
    ],
)
def test_added_tokens_are_found_in_two_passes(
    added: tuple[dict[str, Any], ...], normalizer: Any, text: str, ids: list[int], tmp_path: Path
) -> None:
    file = described({"Regex": r"\s+|\S+"}, ["a", "b"], added, normalizer=normalizer)
    assert both(file, text, tmp_path) == (ids, ids)


def chat_tokenizer() -> Tokenizer:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return Tokenizer.train_from_iterator(["hi there"] * 9, 262, special_tokens=special, progress=False)


def test_saving_keeps_ends_and_template(tmp_path: Path) -> None:
    chat_tokenizer().save(tmp_path / "a" / "tokenizer.json") if (tmp_path / "a").mkdir() is None else None
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": "T"}
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(config))
    first = Tokenizer.from_file(tmp_path / "a")
    (tmp_path / "b").mkdir()
    first.save(tmp_path / "b" / "tokenizer.json")
    first.save(tmp_path / "c")
    for again in (
        Tokenizer.from_file(tmp_path / "b"),
        Tokenizer.from_file(tmp_path / "c"),
        pickle.loads(pickle.dumps(first)),
    ):
        assert (again.bos_id, again.eos_id, again.pad_id, again.unk_id) == (260, 261, None, None)
        assert again.chat_template == "T"
        assert again.special_tokens_map == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    theirs = AutoTokenizer.from_pretrained(tmp_path / "c")
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.chat_template) == (260, 261, "T")


def test_a_token_that_only_the_config_names(tmp_path: Path) -> None:
    Tokenizer.train_from_iterator(["hi"], 257, special_tokens=["<e>"], progress=False).save(tmp_path / "tokenizer.json")
    token = {
        "content": "<audio>",
        "special": True,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "single_word": False,
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {"257": token}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.from_file(tmp_path)
    assert ours.encode("a<audio>", allowed_special="all") == AutoTokenizer.from_pretrained(tmp_path).encode("a<audio>")
    assert len(ours) == 258


def test_truncation_keeps_room_for_the_ends() -> None:
    tok = Tokenizer.train_from_iterator(["a b c"], 258, special_tokens=["<s>", "</s>"], progress=False)
    row = tok("abcdefgh", bos=True, eos=True, truncation=True, max_length=4)["input_ids"]
    assert (row[0], row[-1], len(row)) == (tok.bos_id, tok.eos_id, 4)
    assert tok.decode(row[1:-1]) == "ab"
    left = tok("abcdefgh", eos=True, truncation=True, max_length=3, truncation_side="left")["input_ids"]
    assert tok.decode(left, skip_special_tokens=True) == "gh"
    with pytest.raises(ValueError, match="max_length is 1; the special tokens alone are 2"):
        tok("abc", bos=True, eos=True, truncation=True, max_length=1)


def test_characters_without_the_byte_alphabet(tmp_path: Path) -> None:
    theirs = Theirs(models.BPE(unk_token="<unk>"))
    theirs.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>"], show_progress=False)
    theirs.train_from_iterator(["l'été à la forêt"] * 5, trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert (ours.pipeline, ours.unk_id) == ("general", 0)
    assert ours.general_because == "a pre-tokenizer that does not end in ByteLevel"
    for text in ("été", "la forêt", "xyz été", ""):
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text).ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    "pattern", [r"(?s:.+)", r"\w+|[^\w\s]+|\s+", r"\d{3}+|\s+$|\S+|\s", r"[[:alpha:]]+|(?i:'ll|'ve)|[^a-z]"]
)
def test_a_pattern_means_the_same_in_the_file_it_is_saved_to(pattern: str, tmp_path: Path) -> None:
    text = "می\u200cروم  12345 It'LL été\n\n  x_y "
    tok = Tokenizer.train_from_iterator([text * 20], 264, pattern=pattern, progress=False)
    tok.save(tmp_path / "tokenizer.json")
    assert Theirs.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == tok.encode(text)
    assert Tokenizer.from_file(tmp_path).encode(text) == tok.encode(text)


def test_a_pattern_with_another_meaning_in_the_format_is_refused(tmp_path: Path) -> None:
    tok = Tokenizer.train_from_iterator(["strasse"], 258, pattern=r"(?i:straSSe)|.", progress=False)
    with pytest.raises(ValueError, match=r"cannot be saved.*Oniguruma.*ss"):
        tok.save(tmp_path / "tokenizer.json")
    assert not (tmp_path / "tokenizer.json").exists()
    assert pickle.loads(pickle.dumps(tok)).encode("STRASSE") == tok.encode("STRASSE")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram, SentencePiece's"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "WordPiece, BERT's"),
        ({"model": {"type": "WordLevel", "vocab": {}}}, "WordLevel"),
        ({"decoder": {"type": "CTC", "pad_token": "", "word_delimiter_token": "|", "cleanup": True}}, "decoder.*CTC"),
        ({"decoder": ["WordPiece", "a", False]}, "decoder.*expected an object"),  # CTC in tokenizers
        ({"normalizer": {"type": "Sequence", "normalizers": [["NFC"]]}}, "normalizer.*expected an object"),
        ({"normalizer": {"type": "NFC", "form": "C"}}, "normalizer.*form"),
        ({"normalizer": {"type": "Prepend", "prepend": ""}}, "normalizer.*prepend is empty"),  # tokenizers panics
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}, "pre_tokenizer.*trim_offsets"),
        ({"post_processor": {"type": "Unknown"}}, "post_processor.*Unknown"),
        ({"truncation": {"max_length": 3}}, "truncation.*strategy"),
        ({"version": "2.0"}, 'version is "2.0"'),
        ({"extra": 1}, "extra"),
        (
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}},
            "not a regex that Oniguruma can read",
        ),
        (
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}],
                    "pair": [],
                    "special_tokens": {},
                }
            },
            'post_processor.single names "<x>"',
        ),
    ],
)
def test_unsupported_fields_are_refused_by_name(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(described({"Regex": r"\s|\S+"}, ["a", "b"]) | change))
    with pytest.raises(ValueError, match=named) as caught:
        Tokenizer.from_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Split", "pattern": {"FancyRegex": "a"}, "behavior": "Isolated", "invert": False}},
        {"normalizer": {"type": "Replace", "pattern": {"FancyRegex": "a"}, "content": "b"}},
        {"decoder": {"type": "Replace", "pattern": {"FancyRegex": "a"}, "content": "b"}},
        {"own": {"drops_first_space": True, "as_sentencepiece": True}},
    ],
)
def test_fields_of_pickles_are_refused_in_a_file(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(described({"Regex": r"\s"}, ["a", "b"], **change)))
    with pytest.raises(ValueError, match=r'FancyRegex": "a"|the field "own"'):
        Tokenizer.from_file(tmp_path / "t.json")


def test_adding_tokens_keeps_everything_else(tmp_path: Path) -> None:
    tok = chat_tokenizer()
    tok.chat_template = "T"
    grown = tok.with_special_tokens(["<a>", "<|im_end|>"]).with_tokens(["hi the"])
    assert (len(tok), len(grown), grown.chat_template, grown.eos_id) == (262, 264, "T", tok.eos_id)
    assert grown.encode("<a>hi there<|im_end|>") == [*tok.encode("<a>"), 263, *tok.encode("re<|im_end|>")]
    assert grown.encode("<a>hi there<|im_end|>", allowed_special="all")[:2] == [262, 263]
    grown.save(tmp_path / "grown")
    text = "<a>hi there"
    for again in (Tokenizer.from_file(tmp_path / "grown"), pickle.loads(pickle.dumps(grown))):
        assert again.encode(text, allowed_special="all") == grown.encode(text, allowed_special="all")
    assert AutoTokenizer.from_pretrained(tmp_path / "grown").encode(text) == grown.encode(text, allowed_special="all")
    for bad in ("", 3):
        with pytest.raises((ValueError, TypeError), match="token"):
            tok.with_tokens([bad])  # type: ignore[list-item]


def test_dropout_is_applied_on_request_only(tmp_path: Path) -> None:
    file = described({"Regex": r"\s|\S+"}, ["a", "b"])
    file["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    tok = Tokenizer.from_file(tmp_path)
    text = "ab " * 200
    assert tok.encode(text) == [256, 220] * 200
    dropped = tok.encode_with_dropout(text, seed=1)
    assert dropped == tok.encode_with_dropout(text, seed=1) != tok.encode_with_dropout(text, seed=2)
    assert 200 * 2 + 60 < len(dropped) < 200 * 2 + 140  # about half of the merges
    assert tok.encode_with_dropout(text, 0.0) == tok.encode(text)
    assert 256 not in tok.encode_with_dropout(text, 1.0)
    assert tok.decode(dropped) == text
    with pytest.raises(ValueError, match=r"dropout is 1\.5"):
        tok.encode_with_dropout(text, 1.5)
    with pytest.raises(ValueError, match="names none"):
        chat_tokenizer().encode_with_dropout(text)


def test_the_general_pipeline_is_linear_in_the_text(tmp_path: Path) -> None:
    file = described({"String": "_"}, ["a", "b"], normalizer={"type": "Lowercase"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    tok = Tokenizer.from_file(tmp_path)
    assert tok.pipeline == "general"
    start = time.monotonic()
    assert tok.count("AB" * 500_000) == 500_000
    assert time.monotonic() - start < 60  # a quadratic one would take hours


@pytest.mark.parametrize("pattern", [r"(?<=x*+)", r"(?<!(?:x|y)++)a", r"(?<=x{2}+)", r"(?:k){2}+a{2,1}?"])
def test_a_pattern_that_samples_cannot_distinguish_is_refused(pattern: str, tmp_path: Path) -> None:
    tok = Tokenizer.train_from_iterator(["axxb"], vocab_size=256, pattern=pattern, progress=False)
    with pytest.raises(ValueError, match=r"cannot be saved.*Oniguruma"):
        tok.save(tmp_path / "tokenizer.json")


def test_two_prepends_prepend_twice(tmp_path: Path) -> None:
    byte_tokens = {f"<0x{byte:02X}>": byte for byte in range(256)}
    prepend = {"type": "Prepend", "prepend": "▁"}
    file = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [prepend, prepend, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {"type": "BPE", "vocab": byte_tokens | {"▁": 256, "a": 257}, "merges": [], "byte_fallback": True},
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(file), encoding="utf-8")
    ours, theirs = Tokenizer.from_file(path), Theirs.from_file(str(path))
    for text in ("a", " a", "a a"):
        assert ours.encode(text) == theirs.encode(text).ids
    assert ours.encode("a") == [256, 256, 257]


def test_a_stream_raises_if_the_decoder_changes_text_already_returned() -> None:
    """Only the first of a text loses its mark, so a text that shrinks at the front is another one."""
    theirs = Theirs(models.BPE(vocab={"a": 0, "b": 1, "x": 2}, merges=[]))
    theirs.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex(r"^a(?=b)"), "c")])
    ours = _core.Tokenizer.build_from_huggingface(theirs.to_str().encode())
    stream = ours.decode_stream()
    assert stream.push(0) == "a"
    assert ours.decode([0, 1]) == theirs.decode([0, 1]) == "cb"
    with pytest.raises(ValueError, match='changed text already returned, "a", to "cb"'):
        stream.push(1)


@pytest.mark.parametrize(
    ("steps", "tokens"),
    [
        ([decoders.ByteLevel(), decoders.ByteFallback()], ["\u2581", "x", "é", "x"]),
        ([decoders.ByteFallback()], ["<", "0x", "41>", "x"]),
        ([decoders.Replace("abc", "x")], ["a", "b", "c", "x"]),
        ([decoders.Replace(Regex("(?<=ab)c"), "")], ["a", "b", "c", "x"]),
        ([decoders.BPEDecoder("</w>")], ["<", "/w", ">", "x"]),
        ([decoders.WordPiece("##", True)], ["a", " do", " n", "ot"]),
        ([decoders.Strip(" ", 2, 0)], ["a", " ", " ", "x"]),
        ([decoders.Strip(" ", 1, 0), decoders.Strip(" ", 1, 0)], ["a", " ", " ", "x"]),
        ([decoders.Strip(" ", 1, 0)], ["a", " ", " ", "x"]),
    ],
)
def test_a_stream_continues_if_the_decoder_fuses_all_text(steps: list[Any], tokens: list[str]) -> None:
    """To its end, with the text of the whole, or it says that this changed: text far back counts."""
    theirs = Theirs(models.BPE(vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges=[]))
    theirs.decoder = decoders.Sequence([decoders.Fuse(), *steps])
    ours = _core.Tokenizer.build_from_huggingface(theirs.to_str().encode())
    ids = [theirs.token_to_id(token) for token in tokens]
    for length in range(len(ids) + 1):
        whole = theirs.decode(ids[:length])
        assert ours.decode(ids[:length]) == whole
        stream = ours.decode_stream()
        try:
            text = "".join(map(stream.push, ids[:length])) + stream.flush()
        except ValueError as error:
            assert "changed text already returned" in str(error)
        else:
            assert text == whole


@pytest.mark.parametrize("start", [0, 1, 2, 5])
def test_stripping_ends_at_the_first_other_character(start: int) -> None:
    theirs = Theirs(models.BPE(vocab={"  x ": 0, " ": 1, "x": 2}, merges=[]))
    theirs.decoder = decoders.Strip(" ", start, 0)  # with more it panics where nothing is left
    ours = _core.Tokenizer.build_from_huggingface(theirs.to_str().encode())
    for ids in ([0, 1, 2], [1], [1, 1, 0], [2, 0, 0]):
        stream = ours.decode_stream()
        assert ours.decode(ids) == theirs.decode(ids) == "".join(map(stream.push, ids)) + stream.flush()


@pytest.fixture(scope="module")
def newest_numbers() -> list[str]:
    """Numbers to the Unicode of `tokenizers`' `Digits`, not to that of its regexes."""
    digits, regex = pre_tokenizers.Digits(), pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")
    found = [c for c in map(chr, range(0x10000, 0x20000)) if len(digits.pre_tokenize_str(f"a{c}")) > 1]
    newest = [c for c in found if len(regex.pre_tokenize_str(f"a{c}")) == 1]
    assert len(newest) >= 13
    return newest


@pytest.mark.parametrize("use_regex", [True, False])
@pytest.mark.parametrize("each", [True, False])
def test_digits_are_those_of_the_unicode_version_of_tokenizers(
    each: bool, use_regex: bool, newest_numbers: list[str], tmp_path: Path
) -> None:
    file = described({"Regex": "x"}, ["a", "ð"])
    # Pieces that a merge joins: a space, one of the first bytes, and a mark.
    for left, right in [("Ġ", "ð"), ("!", "ð"), ("Ġ", "Ġ"), ("µ", "!")]:
        file["model"]["vocab"][left + right] = len(file["model"]["vocab"])
        file["model"]["merges"].append([left, right])
    digits = {"type": "Digits", "individual_digits": each}
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, BYTE_LEVEL | {"use_regex": use_regex}]}
    around = [f"a{c}a\U0001f600 {c}{c}!{c}!  {c}'s \ue000{c} {c}" for c in newest_numbers]
    long = [f"{c * 40} {('!' * 70 + c) * 3}  {c}" for c in newest_numbers]
    for text in ["a5", "a٣٣b", *around, *long]:
        ours, theirs = both(file, text, tmp_path)
        assert ours == theirs
    tok = Tokenizer.from_file(tmp_path / "t.json")
    assert tok.pipeline == "fast"
    assert tok.pattern_name == ("smollm_digits" if each and use_regex else None)
    digits_, gpt2 = pre_tokenizers.Digits(each), pre_tokenizers.Split(Regex(_core.pattern_regex("r50k")), "isolated")
    steps = pre_tokenizers.Sequence([digits_, gpt2])
    if each and use_regex:
        for text in [*around, *long]:
            assert _core.split_pieces(tok.pattern, text) == [piece for piece, _ in steps.pre_tokenize_str(text)]


@pytest.mark.parametrize("erased", [".", "[xy]"])
def test_tokens_that_a_decoder_erases_are_tokens(erased: str, tmp_path: Path) -> None:
    """They have no bytes, so the vocabulary ended before them: encoding panicked."""
    file = described({"Regex": r"\s|\S+"}, ["x", "y"])
    file["decoder"] = {"type": "Replace", "pattern": {"Regex": erased}, "content": ""}
    assert both(file, "xy", tmp_path) == ([256], [256])
    tok = Tokenizer.from_file(tmp_path / "t.json")
    assert (tok.vocab_size, tok.decode([256])) == (257, "")
    file["model"]["vocab"]["xy"] = 1 << 31
    (tmp_path / "t.json").write_text(json.dumps(file))
    with pytest.raises(ValueError, match=r'token "xy" has id 2147483648: expected ids below 2097152'):
        Tokenizer.from_file(tmp_path / "t.json")
