"""Write a tokenizer as the metadata of a GGUF file, for the same ids in llama.cpp."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._core import pattern_regex, shown
from bpe_llama._gguf.pre_tokenizers import CHARACTER_NAMES, NEAREST, PRE_TOKENIZERS, PreTokenizer
from bpe_llama._gguf.token_types import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    end_ids,
    find_special_tokens,
)
from bpe_llama.chat.templates import ChatTemplate, to_gguf_metadata

_SPACE = "▁"
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def tokenizer_metadata(
    tokenizer: CoreTokenizer,
    chat_template: ChatTemplate | None = None,
    *,
    add_bos: bool | None = None,
    add_eos: bool | None = None,
    pre: str | None = None,
    model_ends: Collection[int] = (),
) -> dict[str, Any]:
    """Return the GGUF metadata of a tokenizer, for the same ids in llama.cpp.

    A `UserWarning` names each step and token that differs in llama.cpp and that no metadata can change. For example,
    llama.cpp never normalizes text to NFC, and always ends generation at `<|eot_id|>`.

    Args:
        tokenizer: A byte-level tokenizer with a pattern that llama.cpp knows, or a SentencePiece tokenizer.
        chat_template: One template, or several by name, `"default"` being the unnamed one.
        add_bos: Whether `bos_id` is prepended to a text; by default the post-processor decides. Without a
            post-processor, the key is omitted for a SentencePiece tokenizer and false for a byte-level one.
        add_eos: Whether `eos_id` is appended to a text, likewise.
        pre: llama.cpp's name of the pattern; by default the first of its names. For a vocabulary over characters with
            merges, a name such as `"gemma4"`.
        model_ends: The ids at which the model ends generation, of which no warning is needed.

    Raises:
        ValueError: If the pattern has no name in llama.cpp; or if a SentencePiece tokenizer collapses spaces, has
            `ignore_merges`, or has merges that no scores reproduce.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "Tokenizer"; `src/llama-vocab.cpp` of llama.cpp.
    """
    if tokenizer.pipeline == "general":
        raise ValueError(f"a GGUF file cannot express {tokenizer.general_because}, which this tokenizer's file needs")
    described = json.loads(tokenizer.to_own_json())
    if described["post_processor"] is not None:
        stated = _ends_around(tokenizer)
        add_bos = stated[0] if add_bos is None else add_bos
        add_eos = stated[1] if add_eos is None else add_eos
    described["model"]["merges"] = [
        tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in described["model"]["merges"]
    ]
    has_byte_fallback = described["model"]["byte_fallback"]
    if not has_byte_fallback:
        metadata = _byte_level(tokenizer, described, pre)
    elif pre in CHARACTER_NAMES:
        metadata = _characters(tokenizer, described, pre)
    else:
        metadata = _sentencepiece(tokenizer, described)
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "padding": tokenizer.pad_id, "unknown": tokenizer.unk_id}
    for key, token_id in ids.items():
        if token_id is not None:
            metadata.setdefault(f"tokenizer.ggml.{key}_token_id", token_id)
    if add_bos is None and not has_byte_fallback:
        add_bos = False
    for key, value, token_id in (("bos", add_bos, tokenizer.bos_id), ("eos", add_eos, tokenizer.eos_id)):
        if value and token_id is None:
            raise ValueError(f"add_{key} is True, but this tokenizer has no {key}_id")
        if value is not None:
            metadata[f"tokenizer.ggml.add_{key}_token"] = value
    ends = getattr(tokenizer, "end_ids", None)  # an attribute of the subclass only
    metadata = with_end_ids(metadata, sorted(ends or ()), tokenizer.vocab_size)
    _warn_of_tokens(metadata, None if ends is None else {*ends, *model_ends}, tokenizer.vocab_size)
    return metadata | to_gguf_metadata(chat_template)


def with_end_ids(metadata: Mapping[str, Any], wanted: Iterable[int], vocab_size: int) -> dict[str, Any]:
    """Return metadata with keys for ids that end generation: llama.cpp's end of text, of turn and of message.

    llama.cpp knows many of these tokens by their text, which need no key.

    Warns:
        UserWarning: If more ids need a key than the three that exist; the message names the rest.

    Example:
        >>> with_end_ids({"tokenizer.ggml.eos_token_id": 2}, [2, 7], 32)
        {'tokenizer.ggml.eos_token_id': 2, 'tokenizer.ggml.eot_token_id': 7}
    """
    metadata, wanted = dict(metadata), list(wanted)
    for name in ("eos", "eot", "eom"):
        left = [i for i in wanted if 0 <= i < vocab_size and i not in end_ids(metadata, vocab_size)]
        if left:
            metadata.setdefault(f"tokenizer.ggml.{name}_token_id", left[0])
    left = [i for i in wanted if 0 <= i < vocab_size and i not in end_ids(metadata, vocab_size)]
    if left:
        warnings.warn(
            f"a GGUF file has keys for three ids that end a text; it has none for {left}",
            stacklevel=3,
        )
    return metadata


def with_padding(metadata: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Return metadata with a token for each row of a model's embedding, as llama.cpp requires; added ones are UNUSED.

    Metadata without tokens are returned unchanged.

    Raises:
        ValueError: If there are more tokens than `vocab_size`.

    Source: `get_vocab_base` in `convert_hf_to_gguf.py` of https://github.com/ggml-org/llama.cpp.

    Example:
        >>> with_padding({"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.token_type": [1]}, 2)
        {'tokenizer.ggml.tokens': ['a', '[PAD1]'], 'tokenizer.ggml.token_type': [1, 5]}
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return dict(metadata)
    missing = vocab_size - len(tokens)
    if missing < 0:
        raise ValueError(f"the tokenizer has {len(tokens)} tokens; expected at most the model's {vocab_size}")
    padded = dict(metadata)
    padded["tokenizer.ggml.tokens"] = _named([*tokens, *[""] * missing])
    if (types := metadata.get("tokenizer.ggml.token_type")) is not None:
        padded["tokenizer.ggml.token_type"] = [*types, *[UNUSED] * missing]
    if (scores := metadata.get("tokenizer.ggml.scores")) is not None:
        padded["tokenizer.ggml.scores"] = [*scores, *[min(scores)] * missing]
    return padded


def _warn_of_tokens(metadata: Mapping[str, Any], ends: Collection[int] | None, vocab_size: int) -> None:
    """Warn of tokens that llama.cpp knows by their text and takes for other kinds than the metadata says."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    kinds = find_special_tokens(metadata, tokens, types, metadata.get("tokenizer.ggml.eos_token_id")).types
    changed = [i for i, (here, there) in enumerate(zip(types, kinds, strict=True)) if here != there]
    special = [tokens[i] for i in changed if kinds[i] == CONTROL and types[i] != UNKNOWN]
    text = [tokens[i] for i in changed if kinds[i] != CONTROL]
    more_ends = [] if ends is None else [tokens[i] for i in end_ids(metadata, vocab_size) if i not in ends]
    found = [
        f"{what} {shown(names)}"
        for what, names in (
            ("it takes for text", text),
            ("it takes for special tokens", special),
            ("it also ends generation at", more_ends),
        )
        if names
    ]
    if found:
        warnings.warn(f"llama.cpp knows some tokens by their text: {'; '.join(found)}", stacklevel=3)


def _ends_around(tokenizer: CoreTokenizer) -> tuple[bool, bool]:
    """Return whether the post-processor prepends the bos token to a text, and whether it appends the eos token."""
    ids = [special for special, *_ in tokenizer.template(False)]
    place = ids.index(None) if None in ids else len(ids)
    before, after = ids[:place], ids[place + 1 :]
    if place == len(ids) or before not in ([], [tokenizer.bos_id]) or after not in ([], [tokenizer.eos_id]):
        raise ValueError(
            f"a GGUF file can add bos_id, {tokenizer.bos_id}, and eos_id, {tokenizer.eos_id}, to a text, but this "
            f"tokenizer's post-processor gives {ids}, in which None is the text"
        )
    return bool(before), bool(after)


def _byte_level(tokenizer: CoreTokenizer, described: dict[str, Any], pre: str | None) -> dict[str, Any]:
    tokens, types = _listed(tokenizer, described)
    merges = described["model"]["merges"]
    name, differences = _name_of(tokenizer, described, pre)
    if described["normalizer"] is not None:
        differences.append("it does not normalize text to NFC")
    _warn(described, differences)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
    }


def _warn(described: dict[str, Any], differences: list[str]) -> None:
    """Warn of the steps that differ in llama.cpp and that no metadata can change."""
    for added in described["added_tokens"]:
        if added["lstrip"] or added["rstrip"] or added["single_word"]:
            differences.append(f"it matches {added['content']!r} without regard to adjacent white space or letters")
            break
    if differences:
        warnings.warn(
            f"llama.cpp encodes some texts differently: {'; '.join(differences)}",
            stacklevel=4,
        )


def _listed(tokenizer: CoreTokenizer, described: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Return the name and the type of each id; the type of ids without a token is UNUSED."""
    vocab: dict[str, int] = described["model"]["vocab"]
    tokens = [""] * tokenizer.vocab_size
    types = [UNUSED] * tokenizer.vocab_size
    for token, token_id in vocab.items():
        tokens[token_id], types[token_id] = token, NORMAL
    for added in described["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return _named(tokens), types


def _named(tokens: list[str]) -> list[str]:
    """Return tokens with a name for each id that has none, as llama.cpp's converter names it."""
    known, named = set(tokens), list(tokens)
    for token_id in (token_id for token_id, token in enumerate(tokens) if not token):
        name = f"[PAD{token_id}]"
        while name in known:
            name += "_"
        named[token_id] = name
    return named


def _name_of(tokenizer: CoreTokenizer, described: dict[str, Any], pre: str | None) -> tuple[str, list[str]]:
    """Return llama.cpp's name of the pattern, and differences for a warning."""
    pattern, differences = tokenizer.pattern, []
    ignore_merges: bool = described["model"]["ignore_merges"]
    published = pattern.removeprefix("(?#oniguruma)")  # of a pattern from a tokenizer.json, which means the same
    if published in _nearest():
        name, difference = _nearest()[published]
        pattern = _pattern_of(PRE_TOKENIZERS[name])
        differences += [difference] if difference else []
    names = [name for name, pre in PRE_TOKENIZERS.items() if _pattern_of(pre) == pattern]
    if not names:
        raise ValueError(
            f"llama.cpp has no name for the pattern {tokenizer.pattern!r}; expected that of {', '.join(PRE_TOKENIZERS)}"
        )
    if pre is not None:
        if pre not in names:
            raise ValueError(f"pre is {pre!r}; expected a name of this tokenizer's pattern: {', '.join(names)}")
        names = [pre]
    alike = [name for name in names if PRE_TOKENIZERS[name].ignore_merges == ignore_merges]
    if alike:
        return alike[0], differences
    unreached = _unreached(tokenizer)
    if unreached is not None:
        raise ValueError(
            f"ignore_merges is {str(ignore_merges).lower()}, but llama.cpp has another value for {names[0]!r}, and "
            f"merges do not give the token {unreached!r}"
        )
    return names[0], differences


def _pattern_of(pre: PreTokenizer) -> str:
    """Return the `Tokenizer.pattern` of a tokenizer with these steps."""
    return "\n".join(pattern_regex(step) if step.isidentifier() else step for step in pre.patterns)


def _nearest() -> dict[str, tuple[str, str]]:
    return {pattern_regex(ours) if ours.isidentifier() else ours: found for ours, found in NEAREST.items()}


def _unreached(tokenizer: CoreTokenizer) -> bytes | None:
    """Return a token that merges of its bytes do not give, or None."""
    ranks = tokenizer.mergeable_ranks
    size = max(ranks.values(), default=-1) + 1
    tokens: list[bytes] = [b""] * size
    for token, token_id in ranks.items():
        tokens[token_id] = token
    holes = [token_id for token_id, token in enumerate(tokens) if not token]
    if holes:  # build_from_merges needs dense ids, in any order
        tokens = list(ranks)
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [(ids[left], ids[right]) for left, right in tokenizer.merges]
    merging = CoreTokenizer.build_from_merges(tokens, merges, "(?s:.+)")
    return next((token for token, i in ids.items() if merging.encode_bytes(token) != [i]), None)


def _sentencepiece(tokenizer: CoreTokenizer, described: dict[str, Any]) -> dict[str, Any]:
    prefix = _space_prefix(described)
    if described["model"]["ignore_merges"]:
        raise ValueError("a SentencePiece tokenizer with ignore_merges cannot be written to GGUF")
    tokens, types = _listed_pieces(tokenizer, described)
    merges: list[tuple[str, ...]] = described["model"]["merges"]
    order = list(dict.fromkeys("".join(pair) for pair in merges))
    places = {token: place for place, token in enumerate(order)}
    # An earlier merge gives its token a higher score; tokens without a merge come last.
    scores = [-float(places.get(token, len(order) + i)) for i, token in enumerate(tokens)]
    _check_scores(tokens, scores, types, prefix, merges)
    _warn(described, [])
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.ggml.remove_extra_whitespaces": False,
    }


def _characters(tokenizer: CoreTokenizer, described: dict[str, Any], pre: str | None) -> dict[str, Any]:
    """Return the metadata of a vocabulary over characters with merges, such as Gemma 4's."""
    if _space_prefix(described) or described["model"]["ignore_merges"]:
        raise ValueError(f"pre is {pre!r}, for which llama.cpp prepends no space to a text and has no ignore_merges")
    tokens, types = _listed_pieces(tokenizer, described)
    model = {"tokenizer.ggml.model": "gemma4"} if pre == "gemma4" else {"tokenizer.ggml.model": "gpt2"}
    return {
        **model,
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in described["model"]["merges"]],
    }


def _listed_pieces(tokenizer: CoreTokenizer, described: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Return the names and types of `_listed`, with the types of byte tokens and of the unknown token."""
    tokens, types = _listed(tokenizer, described)
    for token_id, token in enumerate(tokens):
        if types[token_id] == NORMAL and _BYTE.fullmatch(token):
            types[token_id] = BYTE
        elif types[token_id] == CONTROL and token == "<unk>":
            types[token_id] = UNKNOWN
    return tokens, types


def _space_prefix(described: dict[str, Any]) -> bool:
    """Return whether the normalizer prepends a space; raise for a step that llama.cpp does not have."""
    if described["pre_tokenizer"] is not None:
        raise ValueError(
            "llama.cpp cannot split text as this SentencePiece tokenizer does: "
            f"pre_tokenizer is {json.dumps(described['pre_tokenizer'])[:200]}"
        )
    normalizer = described["normalizer"] or {"normalizers": []}
    steps = normalizer.get("normalizers", [normalizer])
    prepend = {"type": "Prepend", "prepend": _SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if steps not in ([replace], [prepend, replace]):
        raise ValueError(f"llama.cpp cannot normalize text as this SentencePiece tokenizer does: {json.dumps(steps)}")
    return len(steps) == 2


def _check_scores(
    tokens: list[str], scores: list[float], types: list[int], prefix: bool, merges: list[tuple[str, ...]]
) -> None:
    """Raise if llama.cpp would derive other merges from the scores.

    With scores, every pair whose concatenation is a token may merge. Only one pair of each token ever occurs, since
    merges with higher scores consume the others. So the ids agree if the derived pairs occur among the merges in the
    same order, and all pairs of one token are adjacent.
    """
    kinds = [kind if kind in (BYTE, NORMAL) else CONTROL for kind in types]
    pieces = list(zip(tokens, scores, kinds, strict=True))
    given = json.loads(CoreTokenizer.build_from_gguf_pieces(pieces, prefix, []).to_huggingface())["model"]["merges"]
    rest: Iterable[tuple[str, ...]] = iter(merges)
    for pair in given:
        if tuple(pair) not in rest:
            raise ValueError(f"no scores give the merges of this tokenizer: {''.join(pair)!r} would merge {pair}")
    merged = [token for i, token in enumerate(map("".join, merges)) if i == 0 or token != "".join(merges[i - 1])]
    if len(merged) != len(set(merged)):
        twice = next(token for i, token in enumerate(merged) if token in merged[:i])
        raise ValueError(f"no scores give the merges of this tokenizer: those of {twice!r} are not adjacent")
