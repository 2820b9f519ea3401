"""Read a ``tekken.json``, Mistral's format: a pattern, special tokens, and ranks as in tiktoken."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._core import shown
from bpe_llama._ends import Ends
from bpe_llama._files import errors_naming, read_json

_VERSIONS = ("v1", "v2", "v3", "v7", "v11", "v13", "v15")
_FIELDS = {
    *("config", "vocab", "special_tokens", "version", "type"),
    *("image", "multimodal", "audio", "model_settings_builder"),
}
_CONFIG_FIELDS = {"pattern", "num_vocab_tokens", "default_vocab_size", "default_num_special_tokens", "version"}
_ENTRY_FIELDS = {"rank", "token_bytes", "token_str"}
_SPECIAL_FIELDS = {"rank", "token_str", "is_control"}
_MAX_IDS = 2**21
_MAX_SPECIAL = 2**16  # a file makes up as many names as it says

# The special tokens of a file that lists none; only versions up to 7 may omit the list.
_DEFAULT_SPECIAL = [
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
    *("[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
]


def read_tokenizer(path: Path) -> CoreTokenizer:
    """Return the tokenizer of a ``tekken.json``; ``tok(...)`` begins a text with its bos token.

    Special tokens have the first ids, ordinary tokens the next ones by rank, up to ``default_vocab_size``. Fields for
    images, audio and model settings do not affect the encoding of text.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a field is missing, unknown or inconsistent with another; the message names it.

    Source: ``Tekkenizer`` in ``mistral_common/tokens/tokenizers/tekken.py`` of mistral-common 1.13.1.
    """
    stated = read_json(path)
    with errors_naming(path):
        return _build(stated)


def _build(stated: object) -> CoreTokenizer:
    file = _object("the file", stated, _FIELDS)
    config = _object("config", file.get("config"), _CONFIG_FIELDS)
    pattern = config.get("pattern")
    if not isinstance(pattern, str):
        raise ValueError(f"config.pattern is {shown(pattern)}; expected a regex")
    _check_version(file, config)
    vocab = file.get("vocab")
    if not isinstance(vocab, list):
        raise ValueError(f"vocab is {_kind(vocab)}; expected a list of tokens")
    if "num_vocab_tokens" in config and config["num_vocab_tokens"] != len(vocab):
        raise ValueError(
            f"config.num_vocab_tokens is {shown(config['num_vocab_tokens'])}, but vocab has {len(vocab)} tokens"
        )
    size = _count(config, "default_vocab_size", _MAX_IDS)
    special_count = _count(config, "default_num_special_tokens", _MAX_SPECIAL)
    ordinary_count = size - special_count
    if not 256 <= ordinary_count <= len(vocab):
        raise ValueError(
            f"config.default_vocab_size is {size} and config.default_num_special_tokens {special_count}, which leaves "
            f"{ordinary_count} ordinary tokens; expected 256 to {len(vocab)}, as many as vocab has"
        )
    special = _special_tokens(file.get("special_tokens"), special_count)
    ranks = _ranks(vocab[:ordinary_count], special_count)
    # The group keeps a regex of one word from being read as the name of a pattern.
    core = CoreTokenizer.build_from_ranks(ranks, pattern if "|" in pattern else f"(?:{pattern})", list(special.items()))
    ends = Ends(*(special.get(name) for name in ("<s>", "</s>", "<pad>", "<unk>")))
    # The post-processor of transformers' `MistralCommonBackend`.
    return core.with_ends(*ends).with_template(ends.bos_id, None)


def _check_version(file: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise for an unknown version, or for fields that this version does not have."""
    version = config.get("version")
    if version not in _VERSIONS:
        raise ValueError(f"config.version is {shown(version)}; expected one of {', '.join(_VERSIONS)}")
    number = int(version[1:])
    if file.get("special_tokens") is None and number > 7:
        raise ValueError(f"special_tokens is missing; a file of version {version} lists them")
    if file.get("multimodal") and number > 11:
        raise ValueError(f"multimodal occurs in a file of version {version}; expected the field image")
    if file.get("model_settings_builder") is not None and number < 15:
        raise ValueError(f"model_settings_builder occurs in a file of version {version}; expected v15 or later")
    for key in ("image", "multimodal", "audio", "model_settings_builder"):
        if file.get(key) is not None and not isinstance(file[key], dict):
            raise ValueError(f"{key} is {_kind(file[key])}; expected an object")


def _special_tokens(listed: object, count: int) -> dict[str, int]:
    """Return all special tokens and their ids: those of the file, then ``<SPECIAL_n>`` up to ``count``."""
    if listed is None:
        names = list(_DEFAULT_SPECIAL)
    elif isinstance(listed, list):
        names = [_special_name(i, entry) for i, entry in enumerate(listed)]
    else:
        raise ValueError(f"special_tokens is {_kind(listed)}; expected a list of tokens")
    if len(names) > count:
        raise ValueError(
            f"config.default_num_special_tokens is {count}, but there are {len(names)} special tokens; expected at most"
            f" that number"
        )
    ids: dict[str, int] = {}
    for i, name in enumerate([*names, *(f"<SPECIAL_{i}>" for i in range(len(names), count))]):
        if ids.setdefault(name, i) != i:
            raise ValueError(
                f"special_tokens: {shown(name)} is both token {ids[name]} and token {i}; expected one of it"
            )
    return ids


def _special_name(index: int, entry: object) -> str:
    where = f"special_tokens[{index}]"
    token = _object(where, entry, _SPECIAL_FIELDS)
    if not _is_int(token.get("rank"), index):
        raise ValueError(f"{where}.rank is {shown(token.get('rank'))}; expected {index}, its place in the list")
    name = token.get("token_str")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}.token_str is {shown(name)}; expected the token's text")
    return name


def _ranks(vocab: list[Any], first: int) -> dict[bytes, int]:
    """Return the bytes of ordinary tokens and their ids, from ``first`` on."""
    ranks: dict[bytes, int] = {}
    for rank, entry in enumerate(vocab):
        if not isinstance(entry, dict) or entry.keys() != _ENTRY_FIELDS:
            found = sorted(entry) if isinstance(entry, dict) else entry
            raise ValueError(f"vocab[{rank}] has {shown(found)}; expected the fields {sorted(_ENTRY_FIELDS)}")
        if not _is_int(entry["rank"], rank):
            raise ValueError(f"vocab[{rank}].rank is {shown(entry['rank'])}; expected {rank}, its place in the list")
        try:
            token = base64.b64decode(entry["token_bytes"], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise ValueError(f"vocab[{rank}].token_bytes is {shown(entry['token_bytes'])}: {error}") from None
        if rank < 256 and token != bytes([rank]):
            raise ValueError(f"vocab[{rank}].token_bytes is {shown(token)}; expected the byte {rank}: bytes come first")
        if ranks.setdefault(token, first + rank) != first + rank:
            raise ValueError(f"vocab[{rank}].token_bytes is {shown(token)}, as of vocab[{ranks[token] - first}]")
    return ranks


def _object(name: str, value: object, known: set[str]) -> dict[str, Any]:
    """Return an object of the file; raise for an unknown field."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_kind(value)}; expected an object")
    if unknown := sorted(value.keys() - known):
        raise ValueError(f"{name} has the unknown field {shown(unknown[0])}; expected only {', '.join(sorted(known))}")
    return value


def _count(config: dict[str, Any], key: str, most: int) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"config.{key} is {shown(value)}; expected a number from 0 to {most}")
    return value


def _is_int(value: object, expected: int) -> bool:
    return type(value) is int and value == expected


def _kind(value: object) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
