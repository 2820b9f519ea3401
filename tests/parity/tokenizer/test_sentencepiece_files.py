"""Files of BPE models: GGUF, folders and saved models."""

from __future__ import annotations

import json
import pickle
import random
import re
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from bpe_llama import Tokenizer, _core
from tests.parity.tokenizer.sentencepiece_models import (
    NORMAL,
    UNUSED,
    USER_DEFINED,
    WORDS,
    bytes_and_unknown,
    encode_around,
    in_gguf,
    train,
)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("kind", ["equal scores", "unused", "symbols"])
def test_gguf_pieces_are_encoded_as_llama_cpp_does(kind: str, prefix: bool, tmp_path: Path) -> None:
    symbols = ["<mask>", "of the", "▁▁", "ab", "\n"] if kind == "symbols" else []
    options: dict[str, Any] = {"user_defined_symbols": symbols} if symbols else {}
    model = train(
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        **options,
    )
    for number, each in enumerate(piece for piece in model.pieces if piece.type == NORMAL):
        if kind == "equal scores":
            each.score = float(round(each.score / 40))
        if kind == "unused" and number % 7 == 0:
            each.type = UNUSED
    ours = in_gguf(model, tmp_path / "m.gguf")
    # Merging is sentencepiece's of the same pieces, were they all normal, without minus zero.
    for each in model.pieces:
        each.type = NORMAL if each.type in (UNUSED, USER_DEFINED) else each.type
        each.score += 0.0
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    draw = random.Random(0)
    for _ in range(400):
        text = "".join(draw.choices([*WORDS, " ", "ab", "cab"], k=draw.randrange(9)))
        expected = encode_around(theirs, symbols, text)
        assert ours.encode(text) == expected, text
        assert pickle.loads(pickle.dumps(ours)).encode(text) == expected
    with pytest.raises(ValueError, match=r"cannot be saved as \.model"):
        ours.save(tmp_path / "m.model")


def test_gguf_pieces_without_all_bytes_are_refused(tmp_path: Path) -> None:
    model = train(byte_fallback=False)
    with pytest.raises(ValueError, match=r"m\.gguf: .*it has 0 of 256 bytes"):
        in_gguf(model, tmp_path / "m.gguf")


@pytest.mark.filterwarnings("ignore:.*the id 900, which is ignored")
@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"tokenizer_class": "LlamaTokenizer", "add_eos_token": True},
        {"tokenizer_class": "GemmaTokenizer", "bos_token": "<s>", "pad_token": "<pad>", "model_max_length": 7},
        {"add_bos_token": True, "extra_special_tokens": ["<call>"], "chat_template": "T"},
        {
            "tokenizer_class": "LlamaTokenizer",
            "added_tokens_decoder": {"900": {"content": "<tool>", "normalized": False}},
        },
    ],
)
def test_saving_keeps_a_model_and_the_files_beside_it(config: dict[str, Any] | None, tmp_path: Path) -> None:
    data = train(normalization_rule_name="nfkc", user_defined_symbols=["<mask>"]).SerializeToString()
    (tmp_path / "tokenizer.model").write_bytes(data)
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tok = Tokenizer.from_file(tmp_path)
    grown = tok.with_special_tokens(["<new>"]).with_tokens(["quick"])
    for first in (tok, grown):
        first.save(tmp_path / "saved")
        assert (tmp_path / "saved" / "tokenizer.model").read_bytes() == data
        assert not (tmp_path / "saved" / "tokenizer.json").exists()
        for again in (Tokenizer.from_file(tmp_path / "saved"), pickle.loads(pickle.dumps(first))):
            assert again.added_tokens_json() == first.added_tokens_json()
            assert vars(again._attributes) == vars(first._attributes)
            assert again.special_tokens_map == first.special_tokens_map
            for text in ("the <mask> ﬁne<new>", "", " quick<tool>  ab<call>", "<s>日本</s>"):
                options = {"allowed_special": "all", "return_offsets_mapping": True}
                assert again(text, text, **options) == first(text, text, **options)
                ids = first.encode(text)
                assert again.decode(ids, skip_special_tokens=True) == first.decode(ids, skip_special_tokens=True)
    (tmp_path / "saved" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds a tokenizer\.json, which would be read in place"):
        tok.save(tmp_path / "saved")


@pytest.mark.parametrize("rules", [{"normalization_rule_name": "nmt_nfkc"}, {"byte_fallback": True}])
def test_a_model_is_saved_as_a_model(rules: dict[str, Any], tmp_path: Path) -> None:
    model = train(**rules)
    data = model.SerializeToString()
    (tmp_path / "tokenizer.model").write_bytes(data)
    tok = Tokenizer.from_file(tmp_path)
    tok.save(tmp_path / "saved.model")
    assert (tmp_path / "saved.model").read_bytes() == data
    again = pickle.loads(pickle.dumps(tok))
    for text in WORDS:
        assert again.encode(text) == tok.encode(text)
        assert again.decode(again.encode(text)) == tok.decode(tok.encode(text))
    assert (again.bos_id, again.eos_id, again.vocab_size) == (tok.bos_id, tok.eos_id, tok.vocab_size)
    with pytest.raises(ValueError, match=r"cannot be saved as tokenizer\.json.*save it as \.model"):
        tok.save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"cannot be saved as \.tiktoken"):
        tok.save(tmp_path / "vocab.tiktoken")
    for more, what in (
        (tok.with_special_tokens(["<|end|>"]), 'the added token "<|end|>" cannot be stored'),
        (tok.with_tokens(["zz"]), 'the added token "zz" cannot be stored'),
        (Tokenizer(tok.with_template(tok.bos_id, None)), 'the post-processor, which adds "<s>", cannot be stored'),
    ):
        with pytest.raises(ValueError, match=re.escape(f"cannot be saved as .model: {what}")):
            more.save(tmp_path / "more.model")
        more.save(tmp_path / "more")
        again = Tokenizer.from_file(tmp_path / "more")
        assert (again.added_tokens, again("a")["input_ids"]) == (more.added_tokens, more("a")["input_ids"])
    pieces = [("▁", -1.0, NORMAL), *bytes_and_unknown()]
    plain = Tokenizer(_core.Tokenizer.build_from_gguf_pieces(pieces, True, []))
    with pytest.raises(ValueError, match=r"cannot be saved as \.model: it keeps no SentencePiece model"):
        plain.save(tmp_path / "plain.model")
