"""Describe a tokenizer as the metadata of a GGUF file, so that llama.cpp gives the same ids."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from bpe_llama import _core
from bpe_llama._gguf_patterns import CHARACTER_NAMES, NEAREST, PRE_TOKENIZERS, PreTokenizer
from bpe_llama._gguf_special import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, end_ids

_SPACE = "▁"
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def tokenizer_metadata(
    tokenizer: _core.Tokenizer,
    chat_template: str | Mapping[str, str] | None = None,
    *,
    add_bos: bool | None = None,
    add_eos: bool | None = None,
    pad_id: int | None = None,
    unk_id: int | None = None,
    pre: str | None = None,
) -> dict[str, Any]:
    """Return the GGUF metadata that describes a tokenizer, so that llama.cpp gives the same ids.

    What llama.cpp does otherwise for this kind of tokenizer, whatever the file says, is named in a `UserWarning`: it
    never brings text to normal form C, for instance.

    Args:
        tokenizer: Byte-level, with a pattern that llama.cpp knows; or SentencePiece's.
        chat_template: Stored beside it; several by name, `"default"` the unnamed one.
        add_bos: Whether `bos_id` comes before a text. None means what the tokenizer's post-processor says; without one
            it leaves it to llama.cpp for a SentencePiece tokenizer, and means no for a byte-level one.
        add_eos: Whether `eos_id` comes after a text, likewise.
        pad_id: Fills short rows; None means the tokenizer's own.
        unk_id: Stands for what no token does, likewise.
        pre: llama.cpp's name of the pattern, where several names mean the same; None takes the first of them. Or a name
            of a vocabulary over characters with merges, such as `"gemma4"`.

    Raises:
        ValueError: If the pattern has no name in llama.cpp; or if a SentencePiece tokenizer collapses spaces, takes
            pieces whole, or has merges that no scores give.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "Tokenizer"; `src/llama-vocab.cpp` of llama.cpp.
    """
    if tokenizer.pipeline == "general":
        raise ValueError(f"a GGUF file cannot say {tokenizer.general_because}, which this tokenizer's file asks for")
    described = json.loads(tokenizer.to_own_json())
    if described["post_processor"] is not None:
        stated = _ends_around(tokenizer)
        add_bos = stated[0] if add_bos is None else add_bos
        add_eos = stated[1] if add_eos is None else add_eos
    pad_id = tokenizer.pad_id if pad_id is None else pad_id
    unk_id = tokenizer.unk_id if unk_id is None else unk_id
    described["model"]["merges"] = [
        tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in described["model"]["merges"]
    ]
    whole = described["model"]["byte_fallback"]
    if not whole:
        metadata = _byte_level(tokenizer, described, pre)
    elif pre in CHARACTER_NAMES:
        metadata = _characters(tokenizer, described, pre)
    else:
        metadata = _sentencepiece(tokenizer, described)
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "padding": pad_id, "unknown": unk_id}
    for key, token_id in ids.items():
        if token_id is not None:
            metadata.setdefault(f"tokenizer.ggml.{key}_token_id", token_id)
    if add_bos is None and not whole:
        add_bos = False
    for key, value, token_id in (("bos", add_bos, tokenizer.bos_id), ("eos", add_eos, tokenizer.eos_id)):
        if value and token_id is None:
            raise ValueError(f"add_{key} is True, but this tokenizer has no {key}_id")
        if value is not None:
            metadata[f"tokenizer.ggml.add_{key}_token"] = value
    ends = getattr(tokenizer, "end_ids", ())  # which the compiled class does not know
    return with_end_ids(metadata, sorted(ends), tokenizer.vocab_size) | _templates(chat_template)


def with_end_ids(metadata: Mapping[str, Any], wanted: Iterable[int], vocab_size: int) -> dict[str, Any]:
    """Return a file's metadata with ids at which generation ends, as llama.cpp's end of text, of turn and of message.

    Many ends need no key: llama.cpp knows them by their text.

    Warns:
        UserWarning: If there are more than it has keys for; the rest is named.

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
            f"a GGUF file has keys for three ids that end a text; these have no place in it: {left}",
            UserWarning,
            stacklevel=3,
        )
    return metadata


def _ends_around(tokenizer: _core.Tokenizer) -> tuple[bool, bool]:
    """Return whether the post-processor puts the tokenizer's bos token before a text, and its eos token after it."""
    items = tokenizer.template(False)
    ids = [special for special, *_ in items]
    place = ids.index(None)
    before, after = ids[:place], ids[place + 1 :]
    if before not in ([], [tokenizer.bos_id]) or after not in ([], [tokenizer.eos_id]):
        raise ValueError(
            f"a GGUF file can put bos_id, {tokenizer.bos_id}, and eos_id, {tokenizer.eos_id}, around a text, but this "
            f"tokenizer's post-processor puts {before} and {after}"
        )
    return bool(before), bool(after)


def _templates(chat_template: str | Mapping[str, str] | None) -> dict[str, Any]:
    if chat_template is None:
        return {}
    if isinstance(chat_template, str):
        return {"tokenizer.chat_template": chat_template}
    named = {name: text for name, text in chat_template.items() if name != "default"}
    keys: dict[str, Any] = {f"tokenizer.chat_template.{name}": text for name, text in named.items()}
    if named:
        keys["tokenizer.chat_templates"] = sorted(named)
    if "default" in chat_template:
        keys["tokenizer.chat_template"] = chat_template["default"]
    return keys


def _byte_level(tokenizer: _core.Tokenizer, described: dict[str, Any], pre: str | None) -> dict[str, Any]:
    tokens, types = _listed(tokenizer, described)
    merges = described["model"]["merges"]
    name, differences = _name_of(tokenizer, described, pre)
    if described["normalizer"] is not None:
        differences.append("it does not bring text to Unicode's normal form C")
    _warn(described, differences)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
    }


def _warn(described: dict[str, Any], differences: list[str]) -> None:
    """Warn of what llama.cpp does otherwise whatever the file says."""
    for added in described["added_tokens"]:
        if added["lstrip"] or added["rstrip"] or added["single_word"]:
            differences.append(f"it looks for {added['content']!r} whatever white space or letters stand beside it")
            break
    if differences:
        warnings.warn(
            f"llama.cpp encodes some texts otherwise than this tokenizer: {'; '.join(differences)}",
            UserWarning,
            stacklevel=4,
        )


def _listed(tokenizer: _core.Tokenizer, described: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Return the names of all ids and their types; ids without a token are unused."""
    vocab: dict[str, int] = described["model"]["vocab"]
    tokens = [""] * tokenizer.vocab_size
    types = [UNUSED] * tokenizer.vocab_size
    for token, token_id in vocab.items():
        tokens[token_id], types[token_id] = token, NORMAL
    for added in described["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    known = set(tokens)
    for token_id, token in enumerate(tokens):
        if not token:
            name = f"[UNUSED{token_id}]"
            while name in known:
                name += "_"
            tokens[token_id] = name
            known.add(name)
    return tokens, types


def _name_of(tokenizer: _core.Tokenizer, described: dict[str, Any], pre: str | None) -> tuple[str, list[str]]:
    """Return llama.cpp's name of the pattern, and what it does otherwise."""
    pattern, differences = tokenizer.pattern, []
    ignore_merges: bool = described["model"]["ignore_merges"]
    if pattern in _nearest():
        name, difference = _nearest()[pattern]
        pattern = _pattern_of(PRE_TOKENIZERS[name])
        differences.append(difference)
    names = [name for name, pre in PRE_TOKENIZERS.items() if _pattern_of(pre) == pattern]
    if not names:
        raise ValueError(
            f"llama.cpp has no name for the pattern {tokenizer.pattern!r}; it knows {', '.join(PRE_TOKENIZERS)}"
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
        has = "takes a piece that is a token whole" if ignore_merges else "merges every piece"
        raise ValueError(
            f"this tokenizer {has}, which llama.cpp does not do for {names[0]!r}, and merges do not make its token "
            f"{unreached!r}"
        )
    return names[0], differences


def _pattern_of(pre: PreTokenizer) -> str:
    """Return what `Tokenizer.pattern` is for these steps."""
    return "\n".join(_core.pattern_regex(step) if step.isidentifier() else step for step in pre.patterns)


def _nearest() -> dict[str, tuple[str, str]]:
    return {_core.pattern_regex(ours) if ours.isidentifier() else ours: found for ours, found in NEAREST.items()}


def _unreached(tokenizer: _core.Tokenizer) -> bytes | None:
    """Return a token that merging its own bytes does not make, or None."""
    ranks = tokenizer.mergeable_ranks
    size = max(ranks.values(), default=-1) + 1
    tokens: list[bytes] = [b""] * size
    for token, token_id in ranks.items():
        tokens[token_id] = token
    holes = [token_id for token_id, token in enumerate(tokens) if not token]
    if holes:  # ids must be dense here, and their order means nothing
        tokens = list(ranks)
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [(ids[left], ids[right]) for left, right in tokenizer.merges]
    merging = _core.Tokenizer.build_from_merges(tokens, merges, "(?s:.+)")
    return next((token for token, i in ids.items() if merging.encode_bytes(token) != [i]), None)


def _sentencepiece(tokenizer: _core.Tokenizer, described: dict[str, Any]) -> dict[str, Any]:
    prefix = _space_prefix(described)
    if described["model"]["ignore_merges"]:
        raise ValueError("a SentencePiece tokenizer that takes whole tokens before merging is not written to GGUF")
    tokens, types = _listed_pieces(tokenizer, described)
    merges: list[tuple[str, ...]] = described["model"]["merges"]
    order = list(dict.fromkeys("".join(pair) for pair in merges))
    places = {token: place for place, token in enumerate(order)}
    # Of two tokens the one that merges make first has the higher score; what no merge makes comes last.
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


def _characters(tokenizer: _core.Tokenizer, described: dict[str, Any], pre: str | None) -> dict[str, Any]:
    """Return the metadata of a vocabulary over characters with its merges, as Gemma 4 has it."""
    if _space_prefix(described) or described["model"]["ignore_merges"]:
        raise ValueError(f"pre is {pre!r}, for which llama.cpp puts no space before a text and merges every piece")
    tokens, types = _listed_pieces(tokenizer, described)
    model = {"tokenizer.ggml.model": "gemma4"} if pre == "gemma4" else {"tokenizer.ggml.model": "gpt2"}
    return {
        **model,
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in described["model"]["merges"]],
    }


def _listed_pieces(tokenizer: _core.Tokenizer, described: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Return what `_listed` does, with the types of bytes and of what is unknown."""
    tokens, types = _listed(tokenizer, described)
    for token_id, token in enumerate(tokens):
        if types[token_id] == NORMAL and _BYTE.fullmatch(token):
            types[token_id] = BYTE
        elif types[token_id] == CONTROL and token == "<unk>":
            types[token_id] = UNKNOWN
    return tokens, types


def _space_prefix(described: dict[str, Any]) -> bool:
    """Return whether a space is put before each stretch of text; refuse what llama.cpp does not do."""
    normalizer = described["normalizer"] or {"normalizers": []}
    steps = normalizer.get("normalizers", [normalizer])
    prepend = {"type": "Prepend", "prepend": _SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if steps not in ([replace], [prepend, replace]):
        raise ValueError(f"llama.cpp cannot normalize text as this SentencePiece tokenizer does: {json.dumps(steps)}")
    if described["pre_tokenizer"] is not None:
        raise ValueError(
            "llama.cpp cannot split text as this SentencePiece tokenizer does: "
            f"pre_tokenizer is {json.dumps(described['pre_tokenizer'])[:200]}"
        )
    return len(steps) == 2


def _check_scores(
    tokens: list[str], scores: list[float], types: list[int], prefix: bool, merges: list[tuple[str, ...]]
) -> None:
    """Refuse merges that differ from those that the scores give.

    Scores let every pair merge that makes a token. Only one pair of each token is ever met (the others are taken by
    better merges), so the lists agree if the pairs that scores give stand in the list in the same order, and all pairs
    of a token together.
    """
    kinds = [kind if kind in (BYTE, NORMAL) else CONTROL for kind in types]
    pieces = list(zip(tokens, scores, kinds, strict=True))
    given = json.loads(_core.Tokenizer.build_from_gguf_pieces(pieces, prefix, []).to_huggingface())["model"]["merges"]
    rest: Iterable[tuple[str, ...]] = iter(merges)
    for pair in given:
        if tuple(pair) not in rest:
            raise ValueError(f"no scores give the merges of this tokenizer: of {''.join(pair)!r} they make {pair}")
    made = [token for i, token in enumerate(map("".join, merges)) if i == 0 or token != "".join(merges[i - 1])]
    if len(made) != len(set(made)):
        twice = next(token for i, token in enumerate(made) if token in made[:i])
        raise ValueError(f"no scores give the merges of this tokenizer: those of {twice!r} stand at several places")
