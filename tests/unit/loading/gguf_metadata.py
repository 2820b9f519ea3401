"""Metadata of small tokenizers in GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bpe_llama import _core
from bpe_llama._gguf.reader import GgufTokenizer, read_tokenizer
from bpe_llama._gguf.token_types import BYTE, CONTROL, NORMAL, UNKNOWN
from tests.gguf_files import write_gguf

TEXTS = ["Some words, some more words; 12345 of another 678.\n\tAnd   spaces — naïve 語, she'll say.", "", "  x\n\n "]


def alphabet() -> list[str]:
    """Return GPT-2's characters of the 256 bytes."""
    core = _core.Tokenizer.build_from_merges([bytes([byte]) for byte in range(256)], [], "r50k")
    vocab: dict[str, int] = json.loads(core.to_huggingface())["model"]["vocab"]
    return sorted(vocab, key=vocab.__getitem__)


def byte_level(**changes: Any) -> dict[str, Any]:
    """Return the metadata of a small byte-level tokenizer, with keys changed, or left out where the value is None."""
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*alphabet(), "so", "me", "some", "Ġw", "<|endoftext|>"],
        "token_type": [NORMAL] * 260 + [CONTROL],
        "merges": ["s o", "m e", "so me", "Ġ w"],
        "eos_token_id": 260,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (metadata | changes).items() if value is not None}


def sentencepiece(extra: dict[str, tuple[float, int]] | None = None, **changes: Any) -> dict[str, Any]:
    """Return the metadata of a small SentencePiece tokenizer, with more tokens and keys changed."""
    tokens = {"<unk>": (0.0, UNKNOWN), "<s>": (0.0, CONTROL), "</s>": (0.0, CONTROL)}
    tokens |= {f"<0x{byte:02X}>": (0.0, BYTE) for byte in range(256)}
    tokens |= {"▁a": (-1.0, NORMAL), "ab": (-2.0, NORMAL), "▁ab": (-3.0, NORMAL)}
    tokens |= {token: (-10.0 - i, NORMAL) for i, token in enumerate("▁abx")}
    tokens |= extra or {}
    metadata = {
        "model": "llama",
        "pre": "default",
        "tokens": list(tokens),
        "scores": [score for score, _ in tokens.values()],
        "token_type": [kind for _, kind in tokens.values()],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (metadata | changes).items() if value is not None}


def characters(extra: dict[str, tuple[float, int]] | None = None, **changes: Any) -> dict[str, Any]:
    """Return the metadata of a small tokenizer of Gemma 4's kind."""
    extra = {"\n": (0.0, NORMAL)} | (extra or {})
    return sentencepiece(extra, **({"model": "gemma4", "scores": None, "merges": ["▁ a", "a b", "▁a b"]} | changes))


def read(folder: Path, metadata: dict[str, Any]) -> GgufTokenizer:
    return read_tokenizer(write_gguf(folder / "t.gguf", metadata))
