"""SentencePiece vocabularies without sentencepiece: what is read, what is refused, and how texts come back."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from bpe_llama import Tokenizer
from bpe_llama.chat import encode_conversation
from tests.cost import LINEAR, growth

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
Piece = tuple[str, float, int]

BASE: list[Piece] = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
BASE += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
WORDS: list[Piece] = [
    (text, -float(i), NORMAL)
    for i, text in enumerate(["▁t", "he", "▁the", "▁th", "ll", "llo", "He", "Hello", "▁Hello"])
]
RUNS: list[Piece] = [("▁" * n, -1e9, NORMAL) for n in (2, 3, 4, 8)]
LETTERS: list[Piece] = [(letter, -100.0 - i, NORMAL) for i, letter in enumerate("▁thelloHé")]


def number(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(tag: int, value: int | float | bytes | str) -> bytes:
    """Return a field of a protocol buffer message."""
    if isinstance(value, float):
        return number(tag << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return number(tag << 3) + number(value)
    data = value.encode() if isinstance(value, str) else value
    return number(tag << 3 | 2) + number(len(data)) + data


def model(pieces: Iterable[Piece], *, trainer: bytes = b"", normalizer: bytes = b"", kind: int = 2) -> bytes:
    """Return a tokenizer.model; later fields of a spec win over earlier ones."""
    body = b"".join(field(1, field(1, text) + field(2, score) + field(3, what)) for text, score, what in pieces)
    plain = field(1, "identity") + field(3, 1) + field(4, 0)
    return body + field(2, field(3, kind) + trainer) + field(3, plain + normalizer)


def unique(pieces: Iterable[Piece]) -> list[Piece]:
    return list({text: (text, score, kind) for text, score, kind in pieces}.values())


PIECES = unique(BASE + WORDS + RUNS + LETTERS)


def save(folder: Path, content: bytes) -> Path:
    path = folder / "tokenizer.model"
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(save(tmp_path_factory.mktemp("model"), model(PIECES)))


def test_tokens_hold_spaces_and_unknown_characters_become_bytes(tok: Tokenizer) -> None:
    assert tok.tokenize("the Hello é里") == [b" the", b" Hello", b" ", "é".encode(), b"\xe9", b"\x87", b"\x8c"]
    assert tok.token_to_id("▁the") == tok.token_to_id(" the") == tok.token_to_id(b" the") == tok.encode("the")[0]
    assert tok.tokenize("the" + " " * 15 + "the") == [b" the", b" " * 8, b" " * 4, b"  ", b" the"]
    assert tok.encode("the▁Hello") == tok.encode("the Hello")
    assert tok.encode("") == []
    assert (tok.bos_id, tok.eos_id, tok.vocab_size) == (1, 2, len(PIECES))
    assert tok.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}


@pytest.mark.parametrize(
    "text", ["", "the", " the", "  the  ", "\n", "\0é里😀\n\t", "<s>Hello</s>", "<0x41>", " ", "   "]
)
def test_texts_come_back(tok: Tokenizer, text: str) -> None:
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert tok.decode_bytes(ids) == tok.decode_bytes(tok.encode_bytes(text.encode())) == text.encode()
    assert tok.decode_batch([ids, ids]) == [text, text]
    assert tok.decode([1, *ids, 2], skip_special_tokens=True) == text
    stream = tok.decode_stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == text
    assert tok.count(text) == len(ids) == len(tok.encode_to_numpy(text))
    assert tok.encode_batch([text, "the", text], num_threads=2) == [ids, tok.encode("the"), ids]
    assert tok.encode_bytes(text.encode() + b"\xff")[-1] == tok.token_to_id(b"\xff")
    assert tok.decode_bytes(tok.encode_bytes(text.encode() + b"\xff\xc3")) == text.encode() + b"\xff\xc3"


def test_special_tokens_are_found_in_text_only_where_allowed(tok: Tokenizer) -> None:
    assert not {0, 1, 2} & set(tok.encode("<s>the</s><unk>"))
    # What lies between special tokens is a text of its own, as Meta's and Mistral's own code encodes it.
    assert tok.encode("<s>the</s>Hello", allowed_special="all") == [1, *tok.encode("the"), 2, *tok.encode("Hello")]
    assert tok.encode("the", bos=True, eos=True) == [1, *tok.encode("the"), 2]
    with pytest.raises(ValueError, match=r"<s>.* at byte 4"):
        tok.encode("the <s>", disallowed_special="all")


@pytest.mark.parametrize("collapse", [0, 1])
@pytest.mark.parametrize("gaps", [" |", "| ", " | ", "  |", "|"])
@pytest.mark.parametrize("more", [[], [("yz", -1.0, NORMAL)]], ids=["merged", "by the model"])
def test_parts_of_a_conversation_are_encoded_as_the_whole(
    tmp_path: Path, collapse: int, gaps: str, more: list[Piece]
) -> None:
    tok = Tokenizer.from_file(save(tmp_path, model(PIECES + more, normalizer=field(4, collapse))))
    before, after = gaps.split("|")
    tok.chat_template = (
        f"{{% for m in messages %}}{{% if m.role == 'user' %}}He {{{{ m.content }}}} ll{before}"
        f"{{% else %}}{after}{{{{ m.content }}}}</s>{{% endif %}}{{% endfor %}}"
    )
    talk = [
        {"role": "user", "content": "the Hello"},
        {"role": "assistant", "content": "the  Hello"},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "the"},
    ]
    ids, learned = encode_conversation(tok, talk)
    whole = tok.encode(tok.apply_chat_template(talk, tokenize=False), allowed_special="all")
    assert tok.decode(ids) == tok.decode(whole)
    # A space that ends a prompt cannot be part of the answer's first token, unless it is left out there.
    if gaps != "|" and (collapse or not before):
        assert ids == whole
    answers = "".join(tok.id_to_bytes(i).decode() if mine else "|" for i, mine in zip(ids, learned, strict=True))
    space = " " if after or (collapse and before) else ""
    said = "the Hello" if collapse else "the  Hello"
    assert [part for part in answers.split("|") if part] == [f"{space}{said}</s>", f"{space}the</s>"]
    prompt = tok.apply_chat_template(talk[:1])
    assert ids[: learned.index(True)] == prompt  # as the model meets it when it answers


def test_offsets_and_truncation(tok: Tokenizer) -> None:
    ids, offsets = tok.encode_with_offsets("the é里")
    assert ids == tok.encode("the é里")
    assert offsets == [(0, 3), (3, 4), (4, 5), (5, 6), (5, 6), (5, 6)]
    assert tok.truncate("the Hello the", 2) == "the Hello"
    assert tok.encode_with_offsets("a▁b") == tok.encode_with_offsets("a b")


def test_what_is_saved_is_the_same_tokenizer(tok: Tokenizer, tmp_path: Path) -> None:
    tok.save(tmp_path / "tokenizer.json")
    described = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert described["model"]["byte_fallback"] and described["model"]["vocab"]["▁the"] == tok.encode("the")[0]
    for again in (Tokenizer.from_file(tmp_path), pickle.loads(pickle.dumps(tok))):
        for text in ["the Hello", "  é里 \n", "the" + " " * 23]:
            assert again.encode(text) == tok.encode(text)
            assert again.decode(tok.encode(text)) == text
    with pytest.raises(ValueError, match=r"cannot be saved as \.tiktoken"):
        tok.save(tmp_path / "vocab.tiktoken")


def test_the_configuration_beside_a_model_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, model(PIECES))
    config = {"bos_token": "</s>", "eos_token": {"content": "<s>"}, "chat_template": "{{ messages[0].content }}</s>the"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tok = Tokenizer.from_file(tmp_path)
    assert (tok.bos_id, tok.eos_id) == (2, 1)
    assert tok.apply_chat_template([{"role": "user", "content": "</s>"}]) == [
        *tok.encode("</s>"),
        2,
        *tok.encode("the"),
    ]
    assert Tokenizer.from_file(path).chat_template == tok.chat_template


@pytest.mark.parametrize(
    ("end", "kind", "message"),
    [(9999, "UINT32", "token_id is 9999"), (-1, "INT32", "token_id is -1"), ("<s>", "STRING", "token_id is '<s>'")],
)
def test_the_ends_in_a_gguf_file_are_checked(tmp_path: Path, end: int | str, kind: str, message: str) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package writes the file read here")

    def written(name: str, ends: dict[str, int | str]) -> Path:
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        writer.add_tokenizer_model("llama")
        texts, scores, kinds = (list(column) for column in zip(*PIECES, strict=True))
        writer.add_token_list(texts)
        writer.add_token_scores(scores)
        writer.add_token_types(kinds)
        for key, value in ends.items():
            writer.add_key_value(f"tokenizer.ggml.{key}_token_id", value, gguf.GGUFValueType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return tmp_path / name

    with pytest.raises(ValueError, match=rf"bad\.gguf: tokenizer\.ggml\.bos_{message}; expected an id from 0 to "):
        Tokenizer.from_file(written("bad.gguf", {"bos": end}))
    plain = Tokenizer.from_file(written("plain.gguf", {}))
    assert (plain.bos_id, plain.eos_id) == (1, 2)


def test_files_of_ids_hold_whole_documents(tok: Tokenizer, tmp_path: Path) -> None:
    text = "the Hello  the\n" * 40_000  # more than a chunk: no second space may be put in
    (tmp_path / "a.txt").write_text(text, "utf-8")
    tok.encode_files(tmp_path / "a.txt", tmp_path / "ids.npy", eos=False, progress=False)
    assert np.array_equal(np.load(tmp_path / "ids.npy"), tok.encode_to_numpy(text))


def test_normalizer_options(tmp_path: Path) -> None:
    collapsing = Tokenizer.from_file(save(tmp_path, model(PIECES, normalizer=field(4, 1))))
    assert collapsing.tokenize("  the   Hello ") == [b" the", b" Hello"]
    assert collapsing.encode("   ") == []
    again = pickle.loads(pickle.dumps(collapsing))
    assert again.encode(" the  Hello ▁") == collapsing.encode(" the  Hello ▁") == collapsing.encode("the Hello")
    bare = Tokenizer.from_file(save(tmp_path, model(PIECES, normalizer=field(3, 0))))
    assert bare.tokenize("the Hello") == [b"t", b"he", b" Hello"]
    assert bare.decode(bare.encode(" the")) == " the"


def test_extensions_of_a_model_file_change_nothing(tmp_path: Path) -> None:
    content = model([*PIECES, ("the<>", 0.0, USER_DEFINED), ("e<>t", 0.0, USER_DEFINED)])
    expected = Tokenizer.from_file(save(tmp_path, content)).encode("the<>the<>t <>")
    for number in (200, 1000, 2**29 - 1):
        extended = Tokenizer.from_file(save(tmp_path, content + field(number, 1)))
        assert extended.encode("the<>the<>t <>") == expected


def test_user_defined_pieces_stay_whole(tmp_path: Path) -> None:
    more = [("the<>", 0.0, USER_DEFINED), ("<>", 0.0, USER_DEFINED), ("\n\n", 0.0, USER_DEFINED)]
    tok = Tokenizer.from_file(save(tmp_path, model(PIECES + more)))
    assert tok.tokenize("the<>the\n\n\n<><>") == [b" ", b"the<>", b"t", b"he", b"\n\n", b"\n", b"<>", b"<>"]
    assert "<>" not in tok.special_tokens
    assert pickle.loads(pickle.dumps(tok)).encode(" the<>\n\n") == tok.encode(" the<>\n\n")
    ids = tok.encode_bytes(b" the<>the\xff<>")
    assert ids[: len(ids) - 3] == tok.encode(" the<>the")
    assert tok.decode_bytes(ids) == b" the<>the\xff<>"


def test_a_special_token_spelt_with_a_space_is_decoded_to_one(tmp_path: Path) -> None:
    tok = Tokenizer.from_file(save(tmp_path, model([*PIECES, ("▁<PRE>", 0.0, CONTROL)])))
    prefix, the = tok.special_tokens["▁<PRE>"], tok.encode("the")[0]
    for each in (tok, pickle.loads(pickle.dumps(tok))):
        assert each.decode([the, prefix, the]) == "the <PRE> the"
        assert each.decode([prefix, the]) == "<PRE> the"  # as a space before the first word
        assert each.decode([prefix, the], skip_special_tokens=True) == "the"
        stream = each.decode_stream()
        assert stream.push(the) + stream.push(prefix) + stream.flush() == "the <PRE>"
        assert each.id_to_bytes(prefix) == b" <PRE>"
        assert each.token_to_id(b" <PRE>") == each.token_to_id("▁<PRE>") == prefix
        assert each.encode("the▁<PRE>the", allowed_special="all") == [the, prefix, the]
        assert prefix not in each.encode("the <PRE>the", allowed_special="all")


def test_escapes_in_user_defined_pieces_are_read_back(tmp_path: Path) -> None:
    more = [(text, 0.0, USER_DEFINED) for text in ("\n|", "a.b\n", "(\r)", "\t.")]
    tok = Tokenizer.from_file(save(tmp_path, model(PIECES + more)))
    text = "the\n|a.b\n(\r)\t. Hello"
    assert pickle.loads(pickle.dumps(tok)).encode(text) == tok.encode(text)


def test_added_tokens_of_spaces_are_merged(tok: Tokenizer, tmp_path: Path) -> None:
    """As in Gemma's file: text holds no ▁ by which such a token could be found."""
    tok.save(tmp_path / "tokenizer.json")
    described = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    described["added_tokens"].append({"id": tok.encode("the")[0], "content": "▁the", **flags})
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    again = Tokenizer.from_file(tmp_path)
    assert again.encode("the Hello the") == tok.encode("the Hello the")
    assert again.decode(again.encode("the the")) == "the the"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model(PIECES, kind=1), r"model of type 1 \(Unigram\)"),
        (model(PIECES, normalizer=field(2, b"\1\0\0\0")), "normalizer_spec: precompiled_charsmap is damaged"),
        (model(PIECES) + field(5, field(2, b"x")), "denormalizer_spec: precompiled_charsmap is damaged"),
        (model(PIECES, normalizer=field(2, b"\0\4\0\0" + bytes(1025))), "unit 0 of its trie leads nowhere"),
        (model(PIECES, trainer=field(35, 0)), r"byte_fallback is not set"),
        (model(PIECES[:100], trainer=field(35, 1)), r"byte_fallback.* has 97 of 256 bytes"),
        (model(piece for piece in PIECES if piece[2] not in (BYTE, UNKNOWN)), "no piece is of the type unknown"),
        (model([*PIECES, ("y", 0.0, 9)]), "type 9"),
        (model([*PIECES, ("the", -999.0, NORMAL), ("the", -998.0, NORMAL)]), "two ids"),
        (field(1, field(1, b"\xff\xfe")) + model(PIECES), "piece 0 is no UTF-8"),
        (model(PIECES)[:-3], "announced"),
        (model(PIECES)[:2000], "announced|truncated"),
        (model(PIECES[:20]).replace(b"\x1a", b"\x1b", 1), "wire type|announced|more than"),
        (b"\n\x05\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "announced"),
        (b"\n\x7f\n\x7d", "announced"),
    ],
)
def test_what_cannot_be_read_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = save(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.from_file(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "text", "tokens"),
    [
        (model(PIECES, trainer=field(24, 1)), "the", [b"t", b"he", b" "]),
        (model(PIECES, normalizer=field(5, 0)), "a he", [b" ", b"a", b" ", b"he"]),
        (model(p for p in PIECES if p[2] != BYTE), "the里里 é", [b" the", b"<unk>", b" ", "é".encode()]),
        (model([*PIECES, ("▁the!", 0.0, UNUSED)]), "the!", [b" the", b"!"]),
        (model([*PIECES, ("yz", -1.0, NORMAL)]), "yzhe", [b" ", b"yz", b"he"]),
    ],
    ids=["suffix", "plain spaces", "no bytes", "unused", "equal scores"],
)
def test_what_byte_level_merging_cannot_express(content: bytes, text: str, tokens: list[bytes], tmp_path: Path) -> None:
    tok = Tokenizer.from_file(save(tmp_path, content))
    assert tok.tokenize(text) == tokens
    assert tok.sentencepiece_model() == content
    assert (tok.bos_id, tok.eos_id) == (tok.special_tokens["<s>"], tok.special_tokens["</s>"])
    assert pickle.loads(pickle.dumps(tok)).tokenize(text) == tokens


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = model(PIECES[:40])
    for end in range(3, len(content) - 1):
        with pytest.raises(ValueError):
            Tokenizer.from_file(save(tmp_path, content[:end]))


def test_merges_that_tokenizer_json_cannot_express_are_not_saved(tmp_path: Path) -> None:
    # "lel" is merged of "le" and "l" as soon as of "l" and "el", whichever stands further left.
    more = [("lel", -50.0, NORMAL), ("le", -51.0, NORMAL), ("el", -52.0, NORMAL)]
    tok = Tokenizer.from_file(save(tmp_path, model(PIECES + more)))
    assert tok.tokenize("lelel") == [b" ", b"lel", b"el"]
    with pytest.raises(ValueError, match='several merges of "lel"'):
        tok.save(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("unit", ["l", " ", "é", "里", "he", "x", "▁", "the Hello "])
def test_cost_is_linear(tok: Tokenizer, unit: str) -> None:
    assert growth(lambda size: tok.count(unit * (size // len(unit))), 100_000) < LINEAR


def test_answers_of_a_conversation_get_no_second_space(tmp_path: Path) -> None:
    tok = Tokenizer.from_file(save(tmp_path, model(PIECES)))
    tok.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}<s>{{ m.content }}:{% else %} {{ m.content }}</s>{% endif %}"
        "{% endfor %}"
    )
    talk = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "Hello"}]
    ids, learned = encode_conversation(tok, talk)
    assert [tok.id_to_bytes(token) for token in ids] == [b"<s>", b" the", b":", b" Hello", b"</s>"]
    assert learned == [False, False, False, True, True]


def test_training_does_not_extend_it(tok: Tokenizer) -> None:
    with pytest.raises(ValueError, match="SentencePiece"):
        Tokenizer.train_from_iterator(["the the"], vocab_size=tok.vocab_size + 5, base=tok, progress=False)
