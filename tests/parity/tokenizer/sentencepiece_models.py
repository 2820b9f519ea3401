"""BPE models for the tests of SentencePiece: trained by its own trainer, or built from pieces."""

from __future__ import annotations

import io
import itertools
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from bpe_llama import Tokenizer, _core
from tests.gguf_files import write_gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
Model = sentencepiece_model_pb2.ModelProto

# Words of every kind that a rule, a space or a piece may treat in a way of its own.
WORDS = [
    *("the", "quick", "of the", "aaaa", "abab", "12345", "Straße", "naïve", "日本語", "テスト", "ｶﾞ", "ａｂｃ", "１２"),
    *("ﬁne", "é", "e\u0301", "½", "①", "Ⅷ", "😀", "👩‍👩‍👧", "a\u00a0b", "\u3000", "\u200b", "\u00ad", "\ufeff", "ﷺ"),
    *("▁", "▁▁", "▁x", "<s>", "</s>", "<unk>", "<0x41>", "<mask>", " ⁇ ", "\n", "\t", "\r\n"),
    *("\0", "\x7f\x80", "\u2028", " ", "  ", "   "),
]
CORPUS = [" ".join(random.Random(seed).choices(WORDS, k=12)).replace("\0", "") for seed in range(120)]
SYMBOLS = ["<mask>", "of the", "▁▁", "▁▁▁", "ab", "aba", "the", "é", " a", "  ", "▁x", "\n", "ﬁ", "日本"]
RULES = ["identity", "nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf"]


def train(lines: Iterable[str] = CORPUS, **options: Any) -> Model:
    """Return a model that sentencepiece's own trainer makes of lines."""
    written = io.BytesIO()
    defaults: dict[str, Any] = {"model_type": "bpe", "vocab_size": 700, "character_coverage": 1.0}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=3,
        **(defaults | options),
    )
    return Model.FromString(written.getvalue())


def sides(model: Model) -> tuple[_core.Tokenizer, sentencepiece.SentencePieceProcessor]:
    data = model.SerializeToString()
    return _core.Tokenizer.build_from_sentencepiece(data), sentencepiece.SentencePieceProcessor(model_proto=data)


def piece(text: str, score: float, kind: int) -> Model.SentencePiece:
    return Model.SentencePiece(piece=text, score=score, type=kind)


def built(pieces: list[tuple[str, float, int]], **normalizer: Any) -> Model:
    """Return a model of these pieces, behind the unknown one."""
    model = Model(pieces=[piece("<unk>", 0, UNKNOWN), *itertools.starmap(piece, pieces)])
    model.trainer_spec.model_type = 2
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    for key, value in normalizer.items():
        setattr(model.normalizer_spec, key, value)
    return model


def in_gguf(model: Model, path: Path, **ids: int) -> Tokenizer:
    """Return the tokenizer of a GGUF file that holds the pieces of a model; ``bos=1`` names the id of a token."""
    spec = model.normalizer_spec
    metadata = {
        "model": "llama",
        "tokens": [piece.piece for piece in model.pieces],
        "scores": [piece.score for piece in model.pieces],
        "token_type": [piece.type for piece in model.pieces],
        "add_space_prefix": spec.add_dummy_prefix,
        "remove_extra_whitespaces": spec.remove_extra_whitespaces,
        **{f"{role}_token_id": token for role, token in ids.items()},
    }
    return Tokenizer.from_file(write_gguf(path, {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}))


def encode_around(theirs: sentencepiece.SentencePieceProcessor, symbols: list[str], text: str) -> list[int]:
    """Return ids as llama.cpp gives them: symbols are taken out first, and what follows one is a text of its own."""
    found = re.compile("|".join(map(re.escape, sorted(symbols, key=len, reverse=True))) or r"(?!)")
    ids, done = [], 0
    for match in found.finditer(text):
        ids += [*theirs.encode(text[done : match.start()]), theirs.piece_to_id(match.group())]
        done = match.end()
    return ids + theirs.encode(text[done:])


def bytes_and_unknown() -> list[tuple[str, float, int]]:
    return [("<unk>", 0.0, UNKNOWN), *((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256))]
