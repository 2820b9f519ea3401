# ruff: noqa: RUF001 -- the tokens hold characters of other scripts
"""Find the tokens of a GGUF vocabulary that are special, end generation or strip white space, as llama.cpp does.

A GGUF file holds the type of each token and the ids of some roles. llama.cpp also knows tokens by text. For example,
`<|eot_id|>` always ends a turn.

Source: `llama_vocab::impl::load` and `tokenizer_st_partition` in `src/llama-vocab.cpp` of
https://github.com/ggml-org/llama.cpp, as llama-cpp-python 0.3.36 carries it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from bpe_llama._core import shown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_EOT = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>"),
    *("[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>"),
)
_EOM = ("<|eom_id|>",)
_ENDS = (
    *_EOT,
    *_EOM,
    *("<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "[EOS]", "<eos>", "<turn|>", "<|tool_response>"),
    "[e~[",
)
# Fill-in-the-middle tokens, by the key of their id: the first that exists is a control token.
_FILL_IN = {
    "fim_pre": (
        *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>"),
        "<|prefix|>",
    ),
    "fim_suf": (
        *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>"),
        "<|suffix|>",
    ),
    "fim_mid": (
        *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>"),
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_OLD_KEYS = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
_FILL_IN_ENDS = ("fim_pad", "fim_rep", "fim_sep")
# Tokens of gpt-oss that are decoded as text.
_DECODED_AS_TEXT = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")

_MOST_STEPS = 1_000_000

AddedToken: TypeAlias = "tuple[str, int, bool, bool, bool]"
"""An added token: text, id, special, and whether it strips white space to its left and to its right."""


@dataclass(frozen=True)
class SpecialTokens:
    """The result of `find_special_tokens`: corrected types, and the ids that end generation."""

    types: list[int]
    end_ids: frozenset[int]


def token_id(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    """Return the id under `tokenizer.ggml.NAME_token_id`, or None if there is none.

    Raises:
        ValueError: If it is no id below `count`.
    """
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise ValueError(f"{key} is {shown(value)}; expected an id from 0 to {count - 1}")
    return value


def find_special_tokens(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], eos_id: int | None
) -> SpecialTokens:
    """Return the types of the tokens as llama.cpp corrects them, and the ids that end a turn, a message or a text.

    Args:
        metadata: The metadata of the file.
        tokens: The text of each token, by id, all different.
        types: The type of each token in the file.
        eos_id: The end of a text, which is always among `end_ids`.

    Raises:
        ValueError: If an id is out of range.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    corrected = list(types)
    count = len(tokens)

    def found(name: str, texts: Iterable[str]) -> int | None:
        stated = token_id(metadata, name, count)
        if stated is None and name in _OLD_KEYS:
            stated = token_id(metadata, _OLD_KEYS[name], count)
        if stated is not None:
            return stated
        for text in texts:
            if text in ids:
                corrected[ids[text]] = CONTROL
                return ids[text]
        return None

    turn_ends = [found("eot", _EOT), found("eom", _EOM)]
    fill_in = {name: found(name, texts) for name, texts in _FILL_IN.items()}
    ends = {ids[text] for text in _ENDS if text in ids}
    for i in ends:
        corrected[i] = CONTROL
    for text in _DECODED_AS_TEXT:
        if text in ids:
            corrected[ids[text]] = USER_DEFINED
    ends.update(i for i in (eos_id, *turn_ends, *map(fill_in.get, _FILL_IN_ENDS)) if i is not None)

    ends_with = {tokens[i] for i in ends}
    calls = ends_with & {"<|call|>", "<|calls|>"} and ends_with & {"<|return|>", "<|flush|>"}
    if "<|end|>" in ends_with and calls:  # gpt-oss and Solar: more messages follow it
        ends.discard(ids["<|end|>"])
        corrected[ids["<|end|>"]] = USER_DEFINED
    if "</s>" in ends_with and ends_with & {"<|tool_response>", "<|plamo:eos|>"}:  # Gemma 4: ordinary text
        ends.discard(ids["</s>"])
        corrected[ids["</s>"]] = NORMAL
    return SpecialTokens(corrected, frozenset(ends))


def end_ids(metadata: Mapping[str, Any], vocab_size: int) -> list[int]:
    """Return all ids that end generation in llama.cpp, in order, from a file's metadata and the vocabulary size.

    Raises:
        ValueError: If an id is out of range.
    """
    tokens, types = (metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    count = max(vocab_size, len(tokens)) if isinstance(tokens, list) else vocab_size
    stated = [token_id(metadata, name, count) for name in ("eos", "eot", "eom")]
    if not isinstance(tokens, list) or not isinstance(types, list) or len(types) != len(tokens):
        return sorted({i for i in stated if i is not None})
    eos_id = stated[0]
    usual = {"gpt2": 11, "llama": 2}.get(str(metadata.get("tokenizer.ggml.model")), len(tokens))
    if eos_id is None and usual < len(tokens) and types[usual] == CONTROL:
        eos_id = usual
    return sorted(find_special_tokens(metadata, tokens, types, eos_id).end_ids)


def added_tokens(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> list[AddedToken]:
    """Return the added tokens.

    Files do not hold which of them strip white space; llama.cpp decides by the names of models. It strips ASCII white
    space; `bpe_llama` strips all Unicode white space, as `tokenizers` does.
    """
    name = str(metadata.get("general.name", "")).lower()
    pre, architecture = str(metadata.get("tokenizer.ggml.pre", "")), str(metadata.get("general.architecture", ""))
    left, right, keep = set[str](), False, {"<unk>", "<s>", "<|endoftext|>"}
    if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or any(
        part in architecture for part in ("nomic-bert-moe", "jina-bert-v3")
    ):
        left = {"<mask>"}
    elif "phi-3" in name or "phi3" in name:
        right = True
    elif "modern-bert" in name:
        left = {"[MASK]"}
    return [
        (token, i, kind != USER_DEFINED, token in left, right and token not in keep)
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED, UNKNOWN)
    ]


def overlapping(texts: Sequence[str]) -> tuple[str, str] | None:
    """Return two texts whose overlap llama.cpp and `bpe_llama` would resolve differently, or None.

    llama.cpp searches the whole input for the longest text first; `bpe_llama` searches from left to right and takes the
    longest match at a place. They differ if a suffix of one text is a prefix of another that is at least as long.

    Raises:
        ValueError: If the texts are so alike that this takes more than `_MOST_STEPS` comparisons of 64 characters.
    """
    ordered, first_characters, steps = sorted(texts), {text[:1] for text in texts}, 0
    for first in texts:
        for begin in reversed(range(1, len(first))):
            if first[begin] not in first_characters:
                continue
            suffix = first[begin:]
            for at in range(bisect_left(ordered, suffix), len(ordered) + 1):
                steps += 1 + len(first) // 64
                if steps > _MOST_STEPS:
                    raise ValueError(
                        f"special tokens begin as {shown(first)} and others end, in too many ways to compare them all; "
                        "expected fewer or shorter ones"
                    )
                if at == len(ordered) or not (second := ordered[at]).startswith(suffix):
                    break
                steps += len(second) // 64
                longer = len(second.encode()) >= len(first.encode())
                if longer and second != first and not (first + second[len(suffix) :]).startswith(second):
                    return first, second
    return None
