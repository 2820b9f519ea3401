"""Which file holds a tokenizer, in what format, and what the files beside it say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bpe_llama import _core
from bpe_llama._added_tokens import ROLES, AddedToken, read_stated_tokens
from bpe_llama._chat_templates import ChatTemplate, read_chat_templates
from bpe_llama._ends import Ends
from bpe_llama._files import PathLike, written_whole
from bpe_llama._tokenizer_classes import CLASSES, class_name_for


def file_in(path: PathLike) -> Path:
    """Return the file of a tokenizer: the path itself, or what a folder holds."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json"):
        if (path / name).is_file():
            return path / name
    for suffix in ("*.tiktoken", "*.gguf"):
        found = sorted(file for file in path.glob(suffix) if not file.name.startswith("."))
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{path} holds several {suffix} files: {[file.name for file in found]}; name one")
    raise FileNotFoundError(
        f"{path} holds no tokenizer.json, tokenizer.model, tekken.json, vocab.json, *.tiktoken or *.gguf"
    )


Format: TypeAlias = Literal["gguf", "huggingface", "sentencepiece", "tekken", "tiktoken", "vocab_and_merges"]

# The first key of a JSON object, and the first character of its value.
_FIRST_KEY = re.compile(rb'\s*\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*(.)')
_TEKKEN_KEYS = {b"config", b"vocab", b"special_tokens", b"type", b"image", b"multimodal", b"audio"}


def format_of(path: Path) -> Format:
    """Return the format of a file by its first bytes."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] == b"GGUF":
        return "gguf"
    if path.name in ("vocab.json", "merges.txt") or head.startswith(b"#version"):
        return "vocab_and_merges"
    if head.lstrip()[:1] == b"{":
        return _format_of_json(head)
    # The first field of a SentencePiece model is a message, that of the first piece, whose first field is a string.
    if head[:1] == b"\n" and head[2:3] == b"\n":
        return "sentencepiece"
    if b" " in head.split(b"\n")[0]:
        return "tiktoken"
    raise ValueError(
        f"{path}: expected a tokenizer.json, a tokenizer.model, a tekken.json, a vocab.json, a .tiktoken or a .gguf "
        f"file, but it begins with {head[:16]!r}"
    )


def _format_of_json(head: bytes) -> Format:
    """Return which of the three JSON files this begins: a vocab.json is a flat object of tokens and ids."""
    first = _FIRST_KEY.match(head)
    if first is not None and first[2].isdigit() and first[1] != b"version":
        return "vocab_and_merges"
    return "tekken" if first is not None and first[1] in _TEKKEN_KEYS else "huggingface"


@dataclass
class Beside:
    """What the files beside a tokenizer's say, and the core does not hold.

    Attributes:
        chat_template: A template, several by name, or none.
        roles: Special tokens by the name of their role, but for bos, eos, pad and unk: ``{"mask_token": "<mask>"}``.
        settings: Of ``tokenizer_config.json``, what :meth:`bpe_llama.Tokenizer.__call__` takes its defaults from.
    """

    chat_template: ChatTemplate | None = None
    roles: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


# What is kept of a tokenizer_config.json as it stands.
_SETTINGS = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces", "model_input_names")
# Ours alone: the ids beside eos_token at which generation ends, as a GGUF file names them. transformers passes it over.
_END_IDS = "end_ids"
# Classes of transformers that begin a text with its bos token unless told otherwise.
_ADD_BOS = {"LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "GemmaTokenizer", "GemmaTokenizerFast"}
_ENDS = ("bos_token", "eos_token", "pad_token", "unk_token")


def with_config(
    path: Path, build: Callable[[bytes], _core.Tokenizer], *, is_sentencepiece: bool
) -> tuple[_core.Tokenizer, Beside]:
    """Return the tokenizer in a file with what the files beside it say, as transformers reads them.

    These files are ``tokenizer_config.json``, ``special_tokens_map.json``, ``added_tokens.json`` and those of chat
    templates. Tokens that stand only there are added. ``add_bos_token`` and ``add_eos_token`` count for a SentencePiece
    model alone, since the post-processor of a ``tokenizer.json`` goes before them. A ``tokenizer.json`` is taken as it
    stands: some classes of transformers build another pipeline in its place.

    Raises:
        ValueError: If one of them is damaged, naming file and field.

    Source: ``PreTrainedTokenizerBase._from_pretrained`` and ``TokenizersBackend`` in transformers 5.23.
    """
    try:
        core = build(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    folder = path.parent
    config, special_map, added = (
        read_object(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    try:
        defaults = None if is_sentencepiece else _class_tokens(folder, config)
        core, roles = _with_stated_tokens(core, defaults, config, special_map, added)
        if config and is_sentencepiece:
            core = _with_ends_around(core, config)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{folder}: {error}") from None
    return core, beside(folder, roles)


def beside(folder: Path, roles: Mapping[str, str]) -> Beside:
    """Return what the files of a folder say that the core does not hold, given the tokens of roles of their own."""
    config = read_object(folder / "tokenizer_config.json")
    settings = {key: config[key] for key in _SETTINGS if config.get(key) is not None}
    if (ends := config.get(_END_IDS)) is not None:
        if not isinstance(ends, list) or not all(type(token_id) is int and token_id >= 0 for token_id in ends):
            raise ValueError(f"{folder / 'tokenizer_config.json'}: {_END_IDS} is {ends!r}; expected a list of ids")
        settings[_END_IDS] = ends
    return Beside(read_chat_templates(folder, config), dict(roles), settings)


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one where there is no file.

    Raises:
        ValueError: If it is no JSON object, naming the file.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value


def _with_stated_tokens(
    core: _core.Tokenizer,
    defaults: Mapping[str, str] | None,
    config: Mapping[str, Any],
    special_map: Mapping[str, Any],
    added: Mapping[str, Any],
) -> tuple[_core.Tokenizer, dict[str, str]]:
    """Return the tokenizer with the tokens that the files name, and those of roles that it does not know.

    Args:
        core: The tokenizer.
        defaults: The tokens of roles that the class has where no file names one; ``None`` for a class not known here,
            whose begin and end the tokenizer's own names tell.
        config: The content of tokenizer_config.json.
        special_map: That of special_tokens_map.json.
        added: That of added_tokens.json.
    """
    if not (config or special_map or added or defaults):
        return core, {}
    stated = read_stated_tokens(defaults or {}, config, special_map, added)
    known = {token.pop("content"): token for token in json.loads(core.added_tokens_json())}
    listed = {token.content for token in stated.listed}
    # Flags in added_tokens_decoder replace those of the tokenizer's file; a role alone makes a token special.
    new = []
    for token in stated.to_add():
        flags = known.get(token.content)
        if flags is None or token.content in listed:
            new.append(replace(token, special=token.special or bool(flags and flags["special"])).for_core())
        elif token.special and not flags["special"]:
            new.append(
                AddedToken(
                    token.content, **{key: flags[key] for key in flags if key != "id"} | {"special": True}
                ).for_core()
            )
    if new:
        core = core.with_added_tokens(new)
    added_ids = {token["content"]: token["id"] for token in json.loads(core.added_tokens_json())}
    names = {role: token.content if isinstance(token, AddedToken) else token for role, token in stated.named.items()}
    ends = []
    for role in _ENDS:
        name = names.get(role)
        if role in config or role in special_map or name is not None:
            ends.append(None if name is None else added_ids.get(name, core.token_to_id(name)))
        elif defaults is not None and role in ("bos_token", "eos_token"):
            ends.append(None)
        else:
            ends.append(getattr(core, f"{role[:3]}_id"))
    core = core.with_ends(*ends)
    return core, {role: name for role, name in names.items() if name is not None and role not in _ENDS}


def _class_tokens(folder: Path, config: Mapping[str, Any]) -> Mapping[str, str] | None:
    """Return the tokens of roles that the class of a folder's tokenizer has by default, or ``None`` if not known."""
    name = config.get("tokenizer_class")
    model_type = None if name is not None else read_object(folder / "config.json").get("model_type")
    if isinstance(model_type, str):
        name = class_name_for(model_type) or model_type
    if name is None:
        return {} if config else None
    if not isinstance(name, str):
        raise ValueError(f"tokenizer_config.json: tokenizer_class is {name!r}; expected a str")
    name = name.removesuffix("Fast")
    if name in ("PreTrainedTokenizer", "TokenizersBackend"):
        return {}
    return CLASSES[name].tokens if name in CLASSES else None


def _with_ends_around(core: _core.Tokenizer, config: Mapping[str, Any]) -> _core.Tokenizer:
    """Return a SentencePiece model's tokenizer with the tokens that the class in a config puts around a text."""
    wanted = {}
    for key, default in (("add_bos_token", config.get("tokenizer_class") in _ADD_BOS), ("add_eos_token", False)):
        value = config.get(key, default)
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"tokenizer_config.json: {key} is {value!r}; expected true or false")
        wanted[key] = bool(value)
    before = core.bos_id if wanted["add_bos_token"] else None
    after = core.eos_id if wanted["add_eos_token"] else None
    return core.with_template(before, after)


def write_config(folder: Path, tokenizer: _core.Tokenizer, beside: Beside) -> None:
    """Write the ``tokenizer_config.json`` from which transformers and we read the same ends and added tokens."""
    ends = zip(_ENDS, ends_of(tokenizer), strict=True)
    added = {str(token.pop("id")): token for token in json.loads(tokenizer.added_tokens_json())}
    config: dict[str, Any] = {
        "added_tokens_decoder": added,
        **{role: None if token_id is None else tokenizer.id_to_token(token_id) for role, token_id in ends},
        **{role: name for role, name in beside.roles.items() if role in ROLES},
        "clean_up_tokenization_spaces": False,
        **{key: value for key, value in beside.settings.items() if key in _SETTINGS},
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if set(beside.settings.get(_END_IDS, ())) - {tokenizer.eos_id}:
        config[_END_IDS] = beside.settings[_END_IDS]
    own = {role: name for role, name in beside.roles.items() if role not in ROLES}
    if own:
        config["extra_special_tokens"] = own
    with written_whole(folder / "tokenizer_config.json") as temporary:
        temporary.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def ends_of(tokenizer: _core.Tokenizer) -> Ends:
    """Return the ids that begin and end a text, fill rows and stand for the unknown."""
    return Ends(tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id)
