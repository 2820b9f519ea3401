"""Write a tokenizer as the metadata of a GGUF file, so that llama.cpp gives the same ids."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._core import pattern_regex
from bpe_llama._gguf.pre_tokenizers import CHARACTER_NAMES, NEAREST, PRE_TOKENIZERS, PreTokenizer
from bpe_llama._gguf.token_types import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, end_ids
from bpe_llama.chat.templates import ChatTemplate, to_gguf_metadata

_SPACE = "▁"
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def tokenizer_metadata(
    tokenizer: CoreTokenizer,
    chat_template: ChatTemplate | None = None,
    *,
    add_bos: bool | None = None,
    add_eos: bool | None = None,
    pad_id: int | None = None,
    unk_id: int | None = None,
    pre: str | None = None,
) -> dict[str, Any]:
    """Return the GGUF metadata that describes a tokenizer, so that llama.cpp gives the same ids.

    A `UserWarning` names each step in which llama.cpp differs, whatever the file says: for instance, it never
    normalizes text to NFC.

    Args:
        tokenizer: Byte-level, with a pattern that llama.cpp knows; or SentencePiece's.
        chat_template: One template, or several by name, of which `"default"` is the unnamed one.
        add_bos: Whether `bos_id` comes before a text. By default as the post-processor says. Without a post-processor,
            a SentencePiece tokenizer leaves it to llama.cpp, and a byte-level one says no.
        add_eos: The same for `eos_id` after a text.
        pad_id: The padding id; by default the tokenizer's.
        unk_id: The id of the unknown token; by default the tokenizer's.
        pre: llama.cpp's name of the pattern, by default the first name that means it. For a vocabulary over characters
            with merges, a name such as `"gemma4"`.

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
    return with_end_ids(metadata, sorted(ends), tokenizer.vocab_size) | to_gguf_metadata(chat_template)


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


def _ends_around(tokenizer: CoreTokenizer) -> tuple[bool, bool]:
    """Return whether the post-processor puts the tokenizer's bos token before a text, and its eos token after it."""
    ids = [special for special, *_ in tokenizer.template(False)]
    place = ids.index(None) if None in ids else len(ids)
    before, after = ids[:place], ids[place + 1 :]
    if place == len(ids) or before not in ([], [tokenizer.bos_id]) or after not in ([], [tokenizer.eos_id]):
        raise ValueError(
            f"a GGUF file can put bos_id, {tokenizer.bos_id}, and eos_id, {tokenizer.eos_id}, around a text, but this "
            f"tokenizer's post-processor makes {ids} of a text, None"
        )
    return bool(before), bool(after)


def _byte_level(tokenizer: CoreTokenizer, described: dict[str, Any], pre: str | None) -> dict[str, Any]:
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
    """Warn of the steps in which llama.cpp differs whatever the file says."""
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


def _listed(tokenizer: CoreTokenizer, described: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Return the name and the type of each id; ids without a token are of the type unused."""
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


def _name_of(tokenizer: CoreTokenizer, described: dict[str, Any], pre: str | None) -> tuple[str, list[str]]:
    """Return llama.cpp's name of the pattern, and the differences to warn of."""
    pattern, differences = tokenizer.pattern, []
    ignore_merges: bool = described["model"]["ignore_merges"]
    published = pattern.removeprefix("(?#oniguruma)")  # as a tokenizer.json has it, where it means the same
    if published in _nearest():
        name, difference = _nearest()[published]
        pattern = _pattern_of(PRE_TOKENIZERS[name])
        differences += [difference] if difference else []
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
    """Return the `Tokenizer.pattern` of a tokenizer with these steps."""
    return "\n".join(pattern_regex(step) if step.isidentifier() else step for step in pre.patterns)


def _nearest() -> dict[str, tuple[str, str]]:
    return {pattern_regex(ours) if ours.isidentifier() else ours: found for ours, found in NEAREST.items()}


def _unreached(tokenizer: CoreTokenizer) -> bytes | None:
    """Return a token that merging its bytes does not give, or None."""
    ranks = tokenizer.mergeable_ranks
    size = max(ranks.values(), default=-1) + 1
    tokens: list[bytes] = [b""] * size
    for token, token_id in ranks.items():
        tokens[token_id] = token
    holes = [token_id for token_id, token in enumerate(tokens) if not token]
    if holes:  # build_from_merges wants dense ids; their order is free
        tokens = list(ranks)
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [(ids[left], ids[right]) for left, right in tokenizer.merges]
    merging = CoreTokenizer.build_from_merges(tokens, merges, "(?s:.+)")
    return next((token for token, i in ids.items() if merging.encode_bytes(token) != [i]), None)


def _sentencepiece(tokenizer: CoreTokenizer, described: dict[str, Any]) -> dict[str, Any]:
    prefix = _space_prefix(described)
    if described["model"]["ignore_merges"]:
        raise ValueError("a SentencePiece tokenizer that takes whole tokens before merging is not written to GGUF")
    tokens, types = _listed_pieces(tokenizer, described)
    merges: list[tuple[str, ...]] = described["model"]["merges"]
    order = list(dict.fromkeys("".join(pair) for pair in merges))
    places = {token: place for place, token in enumerate(order)}
    # An earlier merge gives its token a higher score; tokens that no merge makes come last.
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
    """Return whether the normalizer puts a space first; refuse any step that llama.cpp does not have."""
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
    """Refuse merges that llama.cpp would not derive from the scores.

    With scores, every pair that makes a token may merge. Only one pair of each token ever occurs, since better merges
    use up the others. So the ids agree if the derived pairs are in the list of merges in the same order, and all pairs
    of one token are next to each other.
    """
    kinds = [kind if kind in (BYTE, NORMAL) else CONTROL for kind in types]
    pieces = list(zip(tokens, scores, kinds, strict=True))
    given = json.loads(CoreTokenizer.build_from_gguf_pieces(pieces, prefix, []).to_huggingface())["model"]["merges"]
    rest: Iterable[tuple[str, ...]] = iter(merges)
    for pair in given:
        if tuple(pair) not in rest:
            raise ValueError(f"no scores give the merges of this tokenizer: of {''.join(pair)!r} they make {pair}")
    made = [token for i, token in enumerate(map("".join, merges)) if i == 0 or token != "".join(merges[i - 1])]
    if len(made) != len(set(made)):
        twice = next(token for i, token in enumerate(made) if token in made[:i])
        raise ValueError(f"no scores give the merges of this tokenizer: those of {twice!r} stand at several places")
