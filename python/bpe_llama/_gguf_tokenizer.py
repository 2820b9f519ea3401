"""The tokenizer in a GGUF file's metadata: read, and described for writing."""

from __future__ import annotations

import json
import os
from typing import Any

from bpe_llama import _core
from bpe_llama._chat_templates import ChatTemplate, from_gguf_metadata, to_gguf_metadata
from bpe_llama._gguf import read_gguf_header

# llama.cpp's names of pre-tokenizers (`tokenizer.ggml.pre`) and ours of the same patterns.
_PATTERNS = {
    "gpt-2": "r50k",
    "dbrx": "cl100k",
    "llama-bpe": "llama3",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "smollm": "smollm",
    "qwen2": "qwen2",
    "deepseek-v3": "deepseek_v3",
    "gpt-4o": "o200k",
    "llama4": "o200k",
}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def read_tokenizer(path: str | os.PathLike[str]) -> tuple[_core.Tokenizer, ChatTemplate | None]:
    """Return the tokenizer of a GGUF file, and its chat template if it has one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds no tokenizer, or one that is neither byte-level BPE of a known pattern nor
            SentencePiece's BPE with byte fallback.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "Tokenizer".
    """
    metadata = read_gguf_header(path).metadata
    kind = metadata.get("tokenizer.ggml.model")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise ValueError(
            f"{path}: tokenizer.ggml.model is {kind!r}; expected 'gpt2', byte-level BPE, or 'llama', SentencePiece's"
        )
    try:
        core = reader(metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    bos = metadata.get("tokenizer.ggml.bos_token_id", core.bos_id)
    eos = metadata.get("tokenizer.ggml.eos_token_id", core.eos_id)
    try:
        core = core.with_bos_eos(bos, eos)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: bos is {bos!r} and eos {eos!r}; expected ids in the vocabulary") from error
    return core, from_gguf_metadata(metadata)


def _read_byte_level(metadata: dict[str, Any]) -> _core.Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if not isinstance(pre, str) or pre not in _PATTERNS:
        raise ValueError(f"tokenizer.ggml.pre is {pre!r}; expected one of {sorted(_PATTERNS)}")
    tokens, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges")
    if not isinstance(tokens, list) or not isinstance(merges, list):
        raise ValueError("tokenizer.ggml.tokens and tokenizer.ggml.merges are missing")
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    added = [
        {"id": i, "content": token, "special": kind == _CONTROL}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    return _core.Tokenizer.build_from_huggingface(_as_json(tokens, merges, added, _PATTERNS[pre]))


def _read_sentencepiece(metadata: dict[str, Any]) -> _core.Tokenizer:
    tokens, scores, types = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type"))
    if not isinstance(tokens, list) or not isinstance(scores, list) or not isinstance(types, list):
        raise ValueError("tokenizer.ggml.tokens, tokenizer.ggml.scores or tokenizer.ggml.token_type is missing")
    if not len(tokens) == len(scores) == len(types):
        raise ValueError(f"{len(tokens)} tokens have {len(scores)} scores and {len(types)} types: expected one each")
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    collapse = metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)
    try:
        pieces = list(zip(tokens, map(float, scores), map(int, types), strict=True))
        return _core.Tokenizer.build_from_pieces(pieces, bool(prefix), bool(collapse))
    except (TypeError, OverflowError) as error:
        raise ValueError(f"tokenizer.ggml.tokens, scores or token_type: {error}") from None


_READERS = {"gpt2": _read_byte_level, "llama": _read_sentencepiece}


def tokenizer_metadata(tokenizer: _core.Tokenizer, chat_template: ChatTemplate | None = None) -> dict[str, Any]:
    """Return the GGUF metadata that describes a tokenizer, so that llama.cpp gives the same ids.

    Args:
        tokenizer: One with a pattern that llama.cpp knows.
        chat_template: Stored beside it.

    Raises:
        ValueError: If the pattern has no name in llama.cpp, or the tokenizer is SentencePiece's.
    """
    names = {pattern: name for name, pattern in reversed(_PATTERNS.items())}
    described = json.loads(tokenizer.to_huggingface())
    if described["model"]["byte_fallback"]:
        raise ValueError("SentencePiece tokenizers are not written to GGUF: their scores are not kept")
    pre = names.get(tokenizer.pattern_name or "")
    if pre is None:
        known = ", ".join(sorted(names))
        raise ValueError(f"llama.cpp has no name for the pattern {tokenizer.pattern!r}; it has for {known}")
    tokens = [f"[UNUSED{i}]" for i in range(tokenizer.vocab_size)]
    types = [_UNUSED] * tokenizer.vocab_size
    for token, token_id in described["model"]["vocab"].items():
        tokens[token_id], types[token_id] = token, _NORMAL
    for added in described["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in described["model"]["merges"]]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": False,
    }
    for key, token_id in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id)):
        if token_id is not None:
            metadata[f"tokenizer.ggml.{key}_token_id"] = token_id
    return metadata | to_gguf_metadata(chat_template)


def _as_json(tokens: list[str], merges: list[str], added: list[dict[str, Any]], pattern: str) -> bytes:
    """Return the same tokenizer as a tokenizer.json, the one format that is read."""
    split = {
        "type": "Split",
        "pattern": {"Regex": _core.pattern_regex(pattern)},
        "behavior": "Isolated",
        "invert": False,
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {
        "type": "BPE",
        # Llama 3's ranks were published without merges: there a piece that is a token wins, as in its tokenizer.json.
        "ignore_merges": pattern in ("llama3", "o200k"),
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": merges,
    }
    return json.dumps(
        {
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "decoder": byte_level,
            "model": model,
        }
    ).encode()
