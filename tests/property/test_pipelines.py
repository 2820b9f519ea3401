"""A random tokenizer.json and random text: ids, offsets, tokens and decoded text equal those of tokenizers."""

from __future__ import annotations

import base64
import json
import os
import struct
from typing import Any

import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bpe_llama import Tokenizer, _core

# Text dense in what components tell apart: white space of all kinds, marks, scripts, digits, ligatures, the byte
# alphabet's own characters, and what added tokens and byte tokens are spelled with.
LETTERS = (
    "aAbBcé\u0301ßſİﬁ中日かナни1²Ⅷ٣ \t\n\r\u00a0\u2003\u200b\u200c\u200d\u2581\u0120._-!?'#<>|0x😀"
    "\ufeff\x00\x07\u00ad\uac00\u1100\u1161"
)
WORDS = ["ab", " ", "<s>", "[M]", "##", "  ", "don't", "été", "CAFÉ", "123456", "<0x41>"]
WORDS += ["\u2581a", "nbsp\u00a0", "fox."]
TEXTS = st.one_of(
    st.text(LETTERS, max_size=30),
    st.lists(st.sampled_from(WORDS), max_size=10).map("".join),
    st.text(max_size=12),
)
CORPUS = [
    "ab cab été don't 123456 the fox. CAFÉ \u2581a \u00a0nbsp",
    "中日 かナ ab ab  cab\n\tthe the",
    "ſİﬁß 😀😀 a-b_c <s> [M] ##",
] * 3
EXAMPLES = 3000 if os.environ.get("BPE_LLAMA_FULL") == "1" else 100
REGEXES = [r"\s+", r"\w+|[^\w\s]", r"\s+$|\s|\S+", r"(?i:a|é)+", r"\p{N}{1,3}", r"\d{2}+"]
REGEXES += [r"(?<=a)b", r"[[:punct:]]", "$", "^"]
BEHAVIOURS = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]


def charsmap() -> str:
    """Return a table of SentencePiece's for ``A`` to ``bb`` and ``ﬁ`` to ``fi``: a double array of three levels."""
    entries = {b"A": b"bb", "ﬁ".encode(): b"fi", "é".encode(): b"e", b"\t": b" "}
    texts, places = b"", {}
    for key, value in entries.items():
        places[key] = len(texts)
        texts += value + b"\0"
    units = [0] * 4096
    used = {0}
    free = iter(range(256, 4096, 256))

    def place(node: int, prefix: bytes) -> None:
        children = sorted({key[len(prefix)] for key in entries if key.startswith(prefix) and len(key) > len(prefix)})
        is_leaf = prefix in entries
        base = next(free)
        offset = node ^ base
        units[node] = (units[node] & 0x800000FF) | (offset << 10) | (int(is_leaf) << 8)
        used.add(base)
        if is_leaf:
            units[base] = places[prefix] | 1 << 31
        for child in children:
            units[base ^ child] = child
            place(base ^ child, prefix + bytes([child]))

    place(0, b"")
    return base64.b64encode(struct.pack("<I", len(units) * 4) + struct.pack(f"<{len(units)}I", *units) + texts).decode()


CHARSMAP = charsmap()


def pattern(draw: st.DrawFn) -> Any:
    if draw(st.booleans()):
        return Regex(draw(st.sampled_from(REGEXES)))
    return draw(st.sampled_from([" ", "a", "\u2581", "ab", "'"]))


@st.composite
def normalizer(draw: st.DrawFn) -> Any:
    n = normalizers
    simple = [n.NFC(), n.NFD(), n.NFKC(), n.NFKD(), n.Lowercase(), n.Nmt(), n.StripAccents(), n.ByteLevel()]
    makers = [
        lambda: draw(st.sampled_from(simple)),
        lambda: n.Strip(draw(st.booleans()), draw(st.booleans())),
        lambda: n.Replace(pattern(draw), draw(st.sampled_from(["", "\u2581", "xy", " "]))),
        lambda: n.Prepend(draw(st.sampled_from(["\u2581", "a ", "é"]))),
        lambda: n.Precompiled(base64.b64decode(CHARSMAP)),
        lambda: n.BertNormalizer(
            draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from([None, True, False])), draw(st.booleans())
        ),
    ]
    return draw(st.sampled_from(makers))()


@st.composite
def pre_tokenizer(draw: st.DrawFn) -> Any:
    p = pre_tokenizers
    makers = [
        lambda: draw(st.sampled_from([p.Whitespace(), p.WhitespaceSplit(), p.BertPreTokenizer(), p.UnicodeScripts()])),
        lambda: p.Digits(draw(st.booleans())),
        lambda: p.Punctuation(draw(st.sampled_from(BEHAVIOURS))),
        lambda: p.CharDelimiterSplit(draw(st.sampled_from(["a", " ", "é"]))),
        lambda: p.FixedLength(draw(st.integers(1, 4))),
        lambda: p.Metaspace("\u2581", draw(st.sampled_from(["first", "always", "never"])), draw(st.booleans())),
        lambda: p.Split(pattern(draw), draw(st.sampled_from(BEHAVIOURS)), draw(st.booleans())),
        lambda: p.ByteLevel(draw(st.booleans()), True, draw(st.booleans())),
    ]
    return draw(st.sampled_from(makers))()


@st.composite
def decoder(draw: st.DrawFn) -> Any:
    d = decoders
    makers = [
        lambda: draw(
            st.sampled_from([d.ByteLevel(), d.ByteFallback(), d.Fuse(), d.BPEDecoder("</w>"), d.BPEDecoder()])
        ),
        lambda: d.WordPiece(draw(st.sampled_from(["##", "a"])), draw(st.booleans())),
        lambda: d.Metaspace("\u2581", draw(st.sampled_from(["first", "always", "never"])), True),
        lambda: d.Replace(pattern(draw), draw(st.sampled_from(["", " ", "x"]))),
        lambda: d.Strip(draw(st.sampled_from([" ", "a"])), draw(st.integers(0, 2)), 0),
    ]
    return draw(st.sampled_from(makers))()


@st.composite
def post_processor(draw: st.DrawFn, ids: dict[str, int]) -> Any:
    p = processors
    token = st.sampled_from(sorted(ids)).map(lambda name: (name, ids[name]))
    makers = [
        lambda: p.BertProcessing(draw(token), draw(token)),
        lambda: p.RobertaProcessing(draw(token), draw(token), draw(st.booleans()), draw(st.booleans())),
        lambda: p.ByteLevel(trim_offsets=draw(st.booleans())),
        lambda: p.TemplateProcessing(
            single="<s> $A:2 [M]:1 <s>",
            pair="$B:1 <s>:3 $A [M]",
            special_tokens=[("<s>", ids["<s>"]), ("[M]", ids["[M]"])],
        ),
    ]
    return draw(st.sampled_from(makers))()


def sequence(draw: st.DrawFn, component: st.SearchStrategy[Any], make: Any, most: int) -> Any:
    steps = draw(st.lists(component, min_size=0, max_size=most))
    return None if not steps else steps[0] if len(steps) == 1 and draw(st.booleans()) else make(steps)


@st.composite
def pipeline(draw: st.DrawFn, spells_prefix: bool = False) -> tokenizers.Tokenizer:
    """Return a tokenizer of random components with a small vocabulary trained on the spot.

    With ``spells_prefix`` unknown characters become the bytes of themselves and of the prefix of a subword: more bytes
    than the text has.
    """
    model = {
        "unk_token": draw(st.sampled_from([None, "<unk>"])),
        "fuse_unk": draw(st.booleans()),
        "byte_fallback": spells_prefix or draw(st.booleans()),
        "ignore_merges": draw(st.booleans()),
    }
    affixes = {
        "continuing_subword_prefix": "##" if spells_prefix else draw(st.sampled_from([None, None, "##"])),
        "end_of_word_suffix": draw(st.sampled_from([None, None, "</w>"])),
    }
    made = tokenizers.Tokenizer(models.BPE(**model, **{k: v for k, v in affixes.items() if v}))
    made.normalizer = sequence(draw, normalizer(), normalizers.Sequence, 3)
    made.pre_tokenizer = sequence(draw, pre_tokenizer(), pre_tokenizers.Sequence, 3)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if draw(st.booleans()) else []
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)] if spells_prefix or draw(st.booleans()) else []
    trainer = trainers.BpeTrainer(
        vocab_size=draw(st.sampled_from([300, 620])),
        special_tokens=["<unk>", *byte_tokens],
        initial_alphabet=alphabet,
        show_progress=False,
        **{k: v for k, v in affixes.items() if v},
    )
    assume(trained(made, trainer))
    contents = st.sampled_from(["<s>", "[M]", "ab", " ", "  ", "É", "é", "\u0120", "th", "##", "b <s>"])
    for content in draw(st.lists(contents, max_size=5, unique=True)):
        flags = {flag: draw(st.booleans()) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        token = AddedToken(content, **flags)
        (made.add_special_tokens if flags["special"] else made.add_tokens)([token])
    made.add_special_tokens(["<s>", "[M]"])
    ids = {name: made.token_to_id(name) for name in ("<s>", "[M]")}
    processor = sequence(draw, post_processor(ids), processors.Sequence, 2)
    if processor is not None:
        made.post_processor = processor
    steps = sequence(draw, decoder(), decoders.Sequence, 3)
    if steps is not None:
        made.decoder = steps
    return made


def summary(file: str) -> dict[str, Any]:
    """Return a tokenizer.json without its vocabulary, for messages."""
    described = json.loads(file.replace(CHARSMAP, "..."))
    described["model"] = {key: value for key, value in described["model"].items() if key not in ("vocab", "merges")}
    described["added_tokens"] = [token for token in described["added_tokens"] if not token["content"].startswith("<0x")]
    return {key: value for key, value in described.items() if value and key != "version"}


# In `tokenizers` the next normalizer loses or doubles text that one puts before the first character, or panics:
# " " with "▁" put before it is "▁▁" after Strip on the right. We refuse such a text.
ROOTLESS = "a normalizer put text before the first character, and the next step cannot follow it there"


def outcome(call: Any) -> Any:
    """Return what a call returns, or ``None`` if it fails: `tokenizers` panics in a few places."""
    try:
        return call()
    except BaseException as error:  # a panic of Rust's is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return None


def both(theirs: tokenizers.Tokenizer) -> tuple[_core.Tokenizer, tokenizers.Tokenizer] | None:
    """Return ours and theirs, read from the same file, or None if ours refuses it: the first test says when."""
    file = theirs.to_str()
    try:
        ours = _core.Tokenizer.build_from_huggingface(file.encode())
    except ValueError:
        return None
    return ours, tokenizers.Tokenizer.from_str(file)


def unless_rootless(call: Any) -> Any:
    """Return what a call returns, or None for a text that we refuse."""
    try:
        return call()
    except ValueError as error:
        assert ROOTLESS in str(error)
        return None


def trained(theirs: tokenizers.Tokenizer, trainer: Any) -> bool:
    """Train, and return whether `tokenizers` could: some pipelines make it panic on the corpus."""
    return outcome(lambda: (theirs.train_from_iterator(CORPUS, trainer), True)) is not None


@settings(max_examples=EXAMPLES * 4, deadline=None)
@given(theirs=pipeline(), texts=st.lists(TEXTS, min_size=1, max_size=6))
def test_random_pipelines(theirs: tokenizers.Tokenizer, texts: list[str]) -> None:
    file = theirs.to_str()
    try:
        ours = _core.Tokenizer.build_from_huggingface(file.encode())
    except ValueError as error:
        assert "tokenizer.json" in str(error)
        # Only what tokenizers itself cannot read, or what we say we refuse.
        is_theirs = outcome(lambda: tokenizers.Tokenizer.from_str(file)) is None
        assert is_theirs or any(
            why in str(error) for why in ("several templates", "one when normalized", "empty text when normalized")
        )
        return
    theirs = tokenizers.Tokenizer.from_str(file)
    for text in texts:
        expected = outcome(lambda text=text: theirs.encode(text, add_special_tokens=False))
        if expected is None:
            continue
        ids = unless_rootless(lambda text=text: ours.encode(text, allowed_special="all"))
        if ids is None:
            continue
        assert ids == expected.ids, (text, ours.general_because, summary(file))
        with_offsets, offsets = ours.encode_with_offsets(text, allowed_special="all")
        assert with_offsets == expected.ids
        assert offsets == expected.offsets, (text, ours.general_because, summary(file))
        added = set(ours.added_tokens.values())
        names = [(ours.id_to_token(i), name) for i, name in zip(ids, expected.tokens, strict=True) if i not in added]
        assert all(name == other for name, other in names)
        for skip in (False, True):
            decoded = outcome(lambda ids=ids, skip=skip: theirs.decode(ids, skip_special_tokens=skip))
            if decoded is not None:
                assert ours.decode(ids, skip_special_tokens=skip) == decoded, (ids, summary(file))
        theirs.encode_special_tokens = True
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, (text, summary(file))
        theirs.encode_special_tokens = False


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    theirs=pipeline(spells_prefix=True),
    texts=st.lists(st.text("abzQ7 ~#é", max_size=12) | TEXTS, min_size=1, max_size=6),
)
def test_bytes_of_a_prefix_have_the_offsets_of_tokenizers(theirs: tokenizers.Tokenizer, texts: list[str]) -> None:
    """Their lengths lead beyond the text, of one byte a character or of several."""
    if (pair := both(theirs)) is None:
        return
    ours, theirs = pair
    for text in texts:
        expected = outcome(lambda text=text: theirs.encode(text, add_special_tokens=False))
        if expected is None:
            continue
        got = unless_rootless(lambda text=text: ours.encode_with_offsets(text, allowed_special="all"))
        assert got in (None, (expected.ids, expected.offsets)), (text, summary(theirs.to_str()))


@settings(max_examples=EXAMPLES, deadline=None)
@given(theirs=pipeline(), first=TEXTS, second=TEXTS)
def test_what_is_put_around_texts(theirs: tokenizers.Tokenizer, first: str, second: str) -> None:
    if (pair := both(theirs)) is None:
        return
    ours, theirs = Tokenizer(pair[0]), pair[1]
    options = {"allowed_special": "all", "return_token_type_ids": True, "return_special_tokens_mask": True}
    for other in (None, second):
        expected = outcome(lambda other=other: theirs.encode(first, other))
        if expected is None:
            continue
        got = unless_rootless(lambda other=other: ours([first], None if other is None else [other], **options))
        if got is None:
            continue
        assert got["input_ids"] == [expected.ids]
        assert got["token_type_ids"] == [expected.type_ids]
        assert got["special_tokens_mask"] == [expected.special_tokens_mask]


@settings(max_examples=EXAMPLES, deadline=None)
@given(theirs=pipeline(), text=TEXTS)
def test_what_we_save_is_read_to_the_same_thing(theirs: tokenizers.Tokenizer, text: str) -> None:
    if (pair := both(theirs)) is None:
        return
    ours, theirs = pair
    saved = ours.to_huggingface()
    again = _core.Tokenizer.build_from_huggingface(saved.encode())
    read = tokenizers.Tokenizer.from_str(saved)
    expected = outcome(lambda: theirs.encode(text, add_special_tokens=False).ids)
    if expected is not None:
        files = (text, summary(theirs.to_str()), summary(saved))
        assert ours.encode(text, allowed_special="all") == expected, files
        assert again.encode(text, allowed_special="all") == expected, files
        assert read.encode(text, add_special_tokens=False).ids == expected, files
    assert json.loads(again.to_huggingface()) == json.loads(saved)


@settings(max_examples=EXAMPLES * 2, deadline=None)
@given(data=st.data(), picks=st.lists(st.integers(0, 10**6), max_size=12), skip=st.booleans())
def test_streams_give_the_text_of_the_whole(data: st.DataObject, picks: list[int], skip: bool) -> None:
    """Or raise: some decoders change text already returned."""
    made = tokenizers.Tokenizer.from_str(SMALL)
    steps = data.draw(st.lists(decoder(), max_size=3))
    if steps:
        made.decoder = decoders.Sequence(steps)
    ours = _core.Tokenizer.build_from_huggingface(made.to_str().encode())
    ids = [pick % made.get_vocab_size() for pick in picks]
    whole = outcome(lambda: made.decode(ids, skip_special_tokens=skip))
    if whole is None:
        return
    assert ours.decode(ids, skip_special_tokens=skip) == whole
    stream, text = ours.decode_stream(skip_special_tokens=skip), ""
    try:
        for number, token_id in enumerate(ids, 1):
            text += stream.push(token_id)
            assert made.decode(ids[:number], skip_special_tokens=skip).startswith(text)
        text += stream.flush()
    except ValueError as error:
        assert "changed text already returned" in str(error)
        return
    assert text == whole


def small() -> str:
    """Return a tokenizer.json of words, bytes and a special token."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", *bytes_], show_progress=False)
    )
    made.add_special_tokens(["<s>"])
    return str(made.to_str())


SMALL = small()
