"""Read the tokenizer in a GGUF file's metadata; its ids are those of llama.cpp."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._core import shown
from bpe_llama._files import errors_naming
from bpe_llama._gguf.header import read_gguf_header
from bpe_llama._gguf.pre_tokenizers import CHARACTER_NAMES, PRE_TOKENIZERS
from bpe_llama._gguf.token_types import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    AddedToken,
    added_tokens,
    find_special_tokens,
    overlapping,
    token_id,
)
from bpe_llama.chat.templates import ChatTemplate, from_gguf_metadata

_OTHER_MODELS = {
    "bert": "WordPiece",
    "t5": "Unigram",
    "rwkv": "RWKV's longest match",
    "plamo2": "PLaMo's Unigram",
    "hybriddna": "BPE with DNA k-mers",
    "whitespace": "words",
    "none": "no tokenizer",
    "no_vocab": "no tokenizer",
}


@dataclass(frozen=True)
class GgufTokenizer:
    """The tokenizer of a GGUF file.

    Attributes:
        core: The compiled tokenizer, with the special-token ids of the file.
        chat_template: A template, or several by name (`"default"` is the unnamed one), or None.
        add_bos: Whether llama.cpp prepends `bos_id` to a text.
        add_eos: Whether llama.cpp appends `eos_id` to a text.
        end_ids: All ids that end generation in llama.cpp, `eos_id` included.
        pre: The file's `tokenizer.ggml.pre`, the name of the pattern; None for a SentencePiece vocabulary.
    """

    core: CoreTokenizer
    chat_template: ChatTemplate | None
    add_bos: bool
    add_eos: bool
    end_ids: frozenset[int]
    pre: str | None


def read_tokenizer(path: str | os.PathLike[str]) -> GgufTokenizer:
    """Return the tokenizer of a GGUF file; its ids are those of llama.cpp.

    Without `tokenizer.ggml.pre` in the file, llama.cpp's default pattern splits text, with a warning.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds no tokenizer, or one that is neither byte-level BPE nor SentencePiece's BPE
            with byte fallback; the message names the key and its value.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "Tokenizer"; `src/llama-vocab.cpp` of llama.cpp.
    """
    metadata = read_gguf_header(path).metadata
    model = metadata.get("tokenizer.ggml.model")
    with errors_naming(path):
        if model == "gemma4" or (model == "gpt2" and metadata.get("tokenizer.ggml.pre") in CHARACTER_NAMES):
            return _read_characters(metadata)
        if model == "gpt2":
            return _read_byte_level(metadata, path)
        if model == "llama":
            return _read_sentencepiece(metadata)
    what = f" ({_OTHER_MODELS[model]})" if isinstance(model, str) and model in _OTHER_MODELS else ""
    raise ValueError(
        f"{path}: tokenizer.ggml.model is {shown(model)}{what}; expected 'gpt2', byte-level BPE, 'gemma4', BPE over "
        "characters, or 'llama', SentencePiece's"
    )


def _read_byte_level(metadata: dict[str, Any], path: str | os.PathLike[str]) -> GgufTokenizer:
    pre = _pre_tokenizer(metadata, path)
    known = PRE_TOKENIZERS[pre]
    tokens, types = _tokens(metadata)
    merges = _merges(metadata, tokens)

    def build(added: list[AddedToken]) -> CoreTokenizer:
        return CoreTokenizer.build_from_gguf(tokens, merges, known.patterns, known.ignore_merges, added)

    return _finish(metadata, tokens, types, build, (11, 11), add_bos=known.add_bos, pre=pre)


def _merges(metadata: dict[str, Any], tokens: Sequence[str]) -> list[tuple[int, int]]:
    ids = {token: i for i, token in enumerate(tokens)}
    pairs: dict[tuple[int, int], None] = {}  # the first place of a repeated merge counts
    for number, merge in enumerate(_strings(metadata, "merges")):
        at = merge.find(" ", 1)
        left, right = (merge[:at], merge[at + 1 :]) if at > 0 else (merge, "")
        for name in (left, right, left + right):
            if name not in ids:
                raise ValueError(
                    f"tokenizer.ggml.merges[{number}] is {shown(merge)}, but {shown(name)} is not in "
                    "tokenizer.ggml.tokens"
                )
        pairs.setdefault((ids[left], ids[right]))
    return list(pairs)


def _read_characters(metadata: dict[str, Any]) -> GgufTokenizer:
    """Return a tokenizer like Gemma 4's: merges over characters, byte fallback, no space prepended."""
    tokens, types = _tokens(metadata)
    merges = _merges(metadata, tokens)
    pre = "gemma4" if metadata["tokenizer.ggml.model"] == "gemma4" else metadata["tokenizer.ggml.pre"]

    def build(added: list[AddedToken]) -> CoreTokenizer:
        searched = _searched(added)
        pieces = list(zip(tokens, _kinds(types, searched), strict=True))
        return CoreTokenizer.build_from_gguf_characters(pieces, merges, searched)

    found = _finish(metadata, tokens, types, build, None, add_bos=False, pre=pre)
    # llama.cpp overrides the file.
    return replace(found, add_bos=found.core.bos_id is not None) if pre != "sarvam-moe" else found


def _searched(added: list[AddedToken]) -> list[AddedToken]:
    """Return the added tokens that are searched in text: all but user-defined ones with `▁`, which are merged."""
    return [token for token in added if token[2] or "▁" not in token[0]]


def _kinds(types: Sequence[int], searched: list[AddedToken]) -> list[int]:
    """Return the types for the core: merges give no token of `searched` and no byte token.

    The core finds user-defined tokens with `▁` in text with this character.
    """
    kinds = [kind if kind in (BYTE, USER_DEFINED) else NORMAL for kind in types]
    for _, i, *_flags in searched:
        kinds[i] = CONTROL
    return kinds


def _pre_tokenizer(metadata: dict[str, Any], path: str | os.PathLike[str]) -> str:
    name = metadata.get("tokenizer.ggml.pre", "")
    if name == "":
        warnings.warn(
            f"{path}: tokenizer.ggml.pre is missing, so text is split by llama.cpp's default, which may not be how the "
            "model was trained; convert it again",
            stacklevel=5,
        )
        return "default"
    if isinstance(name, str) and name in PRE_TOKENIZERS:
        return name
    raise ValueError(
        f"tokenizer.ggml.pre is {shown(name)}; expected one of {', '.join((*PRE_TOKENIZERS, *CHARACTER_NAMES))}"
    )


def _read_sentencepiece(metadata: dict[str, Any]) -> GgufTokenizer:
    tokens, types = _tokens(metadata)
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or not all(isinstance(score, (int, float)) for score in scores):
        raise ValueError(f"tokenizer.ggml.scores is {_shown(scores)}; expected a list of numbers")
    if len(scores) != (stated := len(metadata["tokenizer.ggml.tokens"])):
        raise ValueError(f"tokenizer.ggml.scores has {len(scores)} entries for {stated} tokens")
    prefix = _flag(metadata, "add_space_prefix", True)
    # llama.cpp reads tokenizer.ggml.remove_extra_whitespaces, but applies it to Unigram models only.

    def build(added: list[AddedToken]) -> CoreTokenizer:
        searched = _searched(added)
        of_tokens = map(float, scores[: len(tokens)])
        pieces = list(zip(tokens, of_tokens, _kinds(types, searched), strict=True))
        return CoreTokenizer.build_from_gguf_pieces(pieces, prefix, searched)

    return _finish(metadata, tokens, types, build, (1, 2), add_bos=True, pre=None)


def _finish(
    metadata: dict[str, Any],
    tokens: Sequence[str],
    types: Sequence[int],
    build: Callable[[list[AddedToken]], CoreTokenizer],
    defaults: tuple[int, int] | None,
    *,
    add_bos: bool,
    pre: str | None,
) -> GgufTokenizer:
    """Return the tokenizer of `build` with the added tokens and the special-token ids of the file.

    `defaults` are llama.cpp's `bos_id` and `eos_id` for a file that names none. They apply if they are control tokens;
    otherwise tokens of common names do.
    """
    ends = []
    for name, default in zip(("bos", "eos"), defaults or (len(tokens),) * 2, strict=True):
        stated = token_id(metadata, name, len(tokens))
        is_control = default < len(tokens) and types[default] == CONTROL
        ends.append(default if stated is None and is_control else stated)
    pad, unk = (token_id(metadata, name, len(tokens)) for name in ("padding", "unknown"))
    special = find_special_tokens(metadata, tokens, types, ends[1])
    added = added_tokens(metadata, tokens, special.types)
    _check_overlaps(added)
    core = build(added)
    bos, eos = (
        stated if stated is not None else usual for stated, usual in zip(ends, (core.bos_id, core.eos_id), strict=True)
    )
    return GgufTokenizer(
        core=core.with_ends(bos, eos, pad, unk if unk is not None or types[0] != UNKNOWN else 0),
        chat_template=from_gguf_metadata(metadata),
        add_bos=_flag(metadata, "add_bos_token", add_bos) and bos is not None,
        add_eos=_flag(metadata, "add_eos_token", False) and eos is not None,
        end_ids=special.end_ids | ({eos} if eos is not None else set()),
        pre=pre,
    )


def _check_overlaps(added: list[AddedToken]) -> None:
    always = overlapping([text for text, _, special, *_ in added if not special])
    if always is not None:
        raise ValueError(
            f"the user-defined tokens {shown(always[0])} and {shown(always[1])} may overlap in a text, where llama.cpp "
            "takes the longer one first: this is not supported"
        )
    sometimes = overlapping([text for text, *_ in added])
    if sometimes is not None:
        warnings.warn(
            f"the special tokens {shown(sometimes[0])} and {shown(sometimes[1])} may overlap in a text: where they are "
            "allowed, llama.cpp takes the longer one, this tokenizer the first",
            stacklevel=6,
        )


def _tokens(metadata: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Return the texts of the tokens and their types, without padding at their end: llama.cpp prints nothing for it."""
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(_strings(metadata, "tokens"))]
    if not tokens:
        raise ValueError("tokenizer.ggml.tokens is empty")
    seen: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if seen.setdefault(token, i) != i:
            raise ValueError(f"tokenizer.ggml.tokens has {shown(token)} twice, as {seen[token]} and {i}")
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return tokens, [NORMAL] * len(tokens)
    if not isinstance(types, list):
        raise ValueError(f"tokenizer.ggml.token_type is {_shown(types)}; expected a list of numbers")
    if len(types) != len(tokens):
        raise ValueError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    for i, kind in enumerate(types):
        if isinstance(kind, bool) or not isinstance(kind, int) or not NORMAL <= kind <= BYTE:
            raise ValueError(f"tokenizer.ggml.token_type[{i}] is {shown(kind)}; expected 1 to 6")
    roles = [value for key, value in metadata.items() if key.endswith("_token_id") and isinstance(value, int)]
    used = len(tokens)
    while used - 1 > max(roles, default=0) and (types[used - 1], tokens[used - 1]) == (UNUSED, f"[PAD{used - 1}]"):
        used -= 1
    return tokens[:used], types[:used]


def _strings(metadata: dict[str, Any], name: str) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"tokenizer.ggml.{name} is {_shown(value)}; expected a list of texts")
    return value


def _flag(metadata: dict[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise ValueError(f"tokenizer.ggml.{name} is {_shown(value)}; expected true or false")
    return value


def _shown(value: object) -> str:
    return "missing" if value is None else shown(value)
