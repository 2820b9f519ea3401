"""Read a tokenizer with the files beside it, as transformers reads its folder; write its tokenizer_config.json."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._core import shown
from bpe_llama._ends import END_ROLES, ends_of, template_ids
from bpe_llama._files import errors_naming, read_bytes, read_json_object
from bpe_llama._loading.added_tokens import (
    ROLES,
    AddedToken,
    AddedTokens,
    StatedTokens,
    listed_tokens,
    read_stated_tokens,
    warn_of_ignored_ids,
)
from bpe_llama._loading.rebuilding import differences
from bpe_llama._loading.settings import Settings, read_settings
from bpe_llama._loading.tokenizer_classes import class_of, class_tokens
from bpe_llama.chat.templates import ChatTemplate, read_chat_templates


@dataclass
class TokenizerAttributes:
    """The content of the files beside a tokenizer that the compiled tokenizer does not hold.

    Attributes:
        chat_template: A template, several by name, or ``None``.
        roles: Special tokens by role, without bos, eos, pad and unk: ``{"mask_token": "<mask>"}``.
        extra: Special tokens without a role, transformers' ``extra_special_tokens``.
        settings: The defaults of :meth:`bpe_llama.Tokenizer.__call__`.
    """

    chat_template: ChatTemplate | None = None
    roles: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    settings: Settings = field(default_factory=Settings)


# Classes of transformers with a default of ``add_bos_token=True``.
_ADD_BOS = {"LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "GemmaTokenizer", "GemmaTokenizerFast"}
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")


def with_config(
    path: Path, *, is_in_folder: bool, is_sentencepiece: bool = False
) -> tuple[CoreTokenizer, TokenizerAttributes]:
    """Return the tokenizer in a file, and the content of the files beside it, as transformers reads them.

    These files are ``tokenizer_config.json``, ``special_tokens_map.json``, ``added_tokens.json`` and the chat
    templates. Their tokens are added to the tokenizer. ``add_bos_token`` and ``add_eos_token`` apply to a SentencePiece
    model only; the post-processor of a ``tokenizer.json`` overrides them. The pipeline is that of the
    ``tokenizer.json``. A ``UserWarning`` names a component that transformers 5 builds differently, and a token whose id
    differs from that in a file, as in transformers.

    Args:
        path: The tokenizer's file.
        is_in_folder: Whether the caller named the folder, not the file. Then, or with any of these files or a
            ``config.json`` beside it, a role for which neither files nor class name a token is ``None``.
        is_sentencepiece: Whether it is a SentencePiece model, not a tokenizer.json.

    Raises:
        ValueError: If one of them is damaged, naming file and field.

    Source: ``PreTrainedTokenizerBase._from_pretrained`` and ``TokenizersBackend`` in transformers 5.23.
    """
    build = CoreTokenizer.build_from_sentencepiece if is_sentencepiece else CoreTokenizer.build_from_huggingface
    content = read_bytes(path)
    with errors_naming(path):
        core = build(content)
    folder = path.parent
    config, special_map, added, model_config = (read_object(folder / name) for name in _BESIDE)
    parts = json.loads(core.components_json() or "{}")
    own = json.loads(core.added_tokens_json())
    with errors_naming(folder, (ValueError, KeyError)):
        name = class_of(config, model_config)
        if name == "LlamaTokenizer" and _is_byte_level(core):
            name = "TokenizersBackend"  # transformers corrects this class, too
        is_alone = not (is_in_folder or any((folder / other).is_file() for other in _BESIDE))
        defaults = None if is_sentencepiece or is_alone else class_tokens(name) or {}
        pad_token = {} if parts.get("padding") is None else {"pad_token": parts["padding"]["pad_token"]}
        files = (pad_token | dict(defaults or {}), config, special_map, added)
        before, held = core, {} if is_sentencepiece else {token["id"]: token["content"] for token in own}
        kept = {name: i for name, i in added.items() if type(i) is not int or held.get(i, name) == name}
        core, roles, extra = _with_stated_tokens(core, defaults, *files[:3], kept)
        if parts and len(core) > len(before) and len(before) != before.vocab_size:
            _check_ids(core, own, json.loads(content)["model"]["vocab"])
        if config and is_sentencepiece:
            core = _with_ends_around(core, config, config.get("tokenizer_class") in _ADD_BOS, False)
        if parts and name != "TokenizersBackend" and "auto_map" not in config:
            file = json.loads(content) | parts  # the parts include default values
            _warn_of_rebuilding(path, name, file, config, read_stated_tokens(*files, own), core)
    warn_of_ignored_ids(folder, core, config, added)
    return core, read_attributes(folder, config, roles, extra, class_name=name, sections=parts)


def with_ranks_config(core: CoreTokenizer, folder: Path) -> tuple[CoreTokenizer, TokenizerAttributes]:
    """Return the tokenizer of a ``.tiktoken`` file or tekken.json with the files beside it, and their content.

    These are the files that `with_config` reads. A role that none of them names keeps the token of the tokenizer's
    file. A token of ``added_tokens_decoder`` has its id there, in place of another such as a reserved token, unless an
    ordinary token has that id.

    Args:
        core: The tokenizer.
        folder: The folder of its file.

    Raises:
        ValueError: If a file is damaged, naming file and field.

    Source: ``TokenizersBackend._convert_from_tiktoken`` in transformers 5.23.
    """
    config, special_map, added, _ = (read_object(folder / name) for name in _BESIDE)
    with errors_naming(folder):
        core = _with_listed_ids(core, listed_tokens(config))
        core, roles, extra = _with_stated_tokens(core, None, {}, config, special_map, added)
        before, after = template_ids(core)
        if (before, after) != (None, None) or config.keys() & {"add_bos_token", "add_eos_token"}:
            core = _with_ends_around(core, config, before is not None, after is not None)
    warn_of_ignored_ids(folder, core, config, added)
    return core, read_attributes(folder, config, roles, extra)


def _with_listed_ids(core: CoreTokenizer, listed: Mapping[int, AddedToken]) -> CoreTokenizer:
    """Return the tokenizer with the listed tokens at their ids, but for ids of ordinary tokens."""
    known = core.special_tokens
    if all(known.get(token.content) == token_id for token_id, token in listed.items()):
        return core
    ranks = core.mergeable_ranks
    ordinary = set(ranks.values())
    named = {token.content: token_id for token_id, token in listed.items() if token_id not in ordinary}
    for name, token_id in named.items():
        has = core.token_to_id(name)
        if has not in (None, token_id) and has not in listed:
            raise ValueError(
                f"tokenizer_config.json: added_tokens_decoder.{token_id} is the token {shown(name)}, which has id {has}"
            )
    rest = {name: token_id for name, token_id in known.items() if name not in named and token_id not in named.values()}
    made = CoreTokenizer.build_from_ranks(ranks, core.pattern_name or core.pattern, list((rest | named).items()))
    made = made.with_added_tokens([token.for_core() for token in listed.values() if token.content in named])
    return made.with_ends(*ends_of(core)).with_template(*template_ids(core))


def read_attributes(
    folder: Path,
    config: Mapping[str, Any],
    roles: Mapping[str, str],
    extra: Iterable[str],
    *,
    class_name: str | None = None,
    sections: Mapping[str, Any] | None = None,
) -> TokenizerAttributes:
    """Return the content of a folder's files that the compiled tokenizer does not hold.

    Args:
        folder: May hold chat templates.
        config: The content of its ``tokenizer_config.json``.
        roles: Special tokens by role.
        extra: Special tokens without a role.
        class_name: As :func:`bpe_llama._loading.settings.read_settings` takes it.
        sections: As :func:`bpe_llama._loading.settings.read_settings` takes it.

    Raises:
        ValueError: If a file is damaged or a field is wrong, naming both.
    """
    with errors_naming(folder):
        settings = read_settings(config, class_name, sections)
    return TokenizerAttributes(read_chat_templates(folder, config), dict(roles), list(extra), settings)


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if there is no file.

    Raises:
        ValueError: If the file holds no JSON object; the message names it.
    """
    return read_json_object(path) if path.is_file() else {}


def _with_stated_tokens(
    core: CoreTokenizer,
    defaults: Mapping[str, str | None] | None,
    named: Mapping[str, str | None],
    config: Mapping[str, Any],
    special_map: Mapping[str, Any],
    added: Mapping[str, Any],
) -> tuple[CoreTokenizer, dict[str, str], list[str]]:
    """Return the tokenizer with the tokens of the files, the tokens of other roles, and the tokens without a role.

    Args:
        core: The tokenizer.
        defaults: The class's tokens of roles that no file names. With ``None``, ``bos_id``, ``eos_id`` and ``unk_id``
            stay those of ``core``.
        named: The same with the ``pad_token`` of the section ``padding`` in a tokenizer.json.
        config: The content of tokenizer_config.json.
        special_map: The content of special_tokens_map.json.
        added: The content of added_tokens.json.
    """
    if defaults is None and not (config or special_map or added):
        return core, {}, []
    stated = read_stated_tokens(named, config, special_map, added)
    known = {token.pop("content"): token for token in json.loads(core.added_tokens_json())}
    listed, names = {token.content for token in stated.listed}, stated.names()
    # added_tokens_decoder overrides the flags in the tokenizer's file, a role only sets the flag `special`, and a place
    # in `extra_special_tokens` sets none.
    new = []
    for token in stated.to_add():
        flags = known.get(token.content)
        if flags is None or token.content in listed:
            new.append(replace(token, special=token.special or bool(flags and flags["special"])).for_core())
        elif token.content in names.values() and not flags["special"]:
            new.append(
                AddedToken(
                    token.content, **{key: flags[key] for key in flags if key != "id"} | {"special": True}
                ).for_core()
            )
    if new:
        core = core.with_added_tokens(new)
    added_ids = {token["content"]: token["id"] for token in json.loads(core.added_tokens_json())}
    ends = []
    for role in END_ROLES:
        name = names.get(role)
        if role in config or role in special_map or name is not None:
            ends.append(None if name is None else added_ids.get(name, core.token_to_id(name)))
        elif defaults is not None:
            ends.append(None)
        else:
            ends.append(getattr(core, f"{role[:3]}_id"))
    core = core.with_ends(*ends)
    return core, {role: name for role, name in names.items() if role not in END_ROLES}, stated.extra_names()


def _check_ids(core: CoreTokenizer, own: list[dict[str, Any]], vocab: Mapping[str, int]) -> None:
    """Raise if an added token has another id in transformers, which counts differently if ids have a hole."""
    theirs = AddedTokens(vocab)
    for token in (*own, *json.loads(core.added_tokens_json())):
        theirs.add([AddedToken(token["content"])])
        if theirs.id_of(token["content"]) != token["id"]:
            raise ValueError(
                f"tokenizer.json: added token {shown(token['content'])} gets id {token['id']}, but id "
                f"{theirs.id_of(token['content'])} in transformers, since the ids of the vocabulary have a hole"
            )


def _warn_of_rebuilding(
    path: Path,
    name: str | None,
    file: dict[str, Any],
    config: Mapping[str, Any],
    stated: StatedTokens,
    core: CoreTokenizer,
) -> None:
    """Warn if the class of a folder in transformers builds another tokenizer than its tokenizer.json."""
    if class_tokens(name) is None:
        what = "the class of its model_type" if name is None else f"tokenizer_class {shown(name)}"
        warnings.warn(
            f"{path}: {what} is not known here; if transformers 5 has it, it builds its own pipeline in its place, "
            "and has default tokens of its own. This tokenizer follows the file",
            stacklevel=5,
        )
        return
    added = json.loads(core.added_tokens_json())
    for key, here, there in differences(name or "", file, config, stated, added):
        warnings.warn(
            f"{path}: {key} is {_shown(here)}; transformers 5 builds {_shown(there)} in its place, as for a "
            f"{name}, and so can give other ids, offsets or text. This tokenizer follows the file",
            stacklevel=5,
        )
        return


def _shown(component: Any) -> str:
    text = json.dumps(component, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _is_byte_level(core: CoreTokenizer) -> bool:
    """Return whether the vocabulary is byte-level: it spells a space ``Ġ``, not ``▁``."""
    space = core.token_to_id(b" ")
    return space is not None and core.id_to_token(space) == "Ġ"


def _with_ends_around(core: CoreTokenizer, config: Mapping[str, Any], add_bos: bool, add_eos: bool) -> CoreTokenizer:
    """Return a tokenizer with a post-processor for the config's add_bos_token and add_eos_token, or these defaults."""
    wanted = {}
    for key, default in (("add_bos_token", add_bos), ("add_eos_token", add_eos)):
        value = config.get(key, default)
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"tokenizer_config.json: {key} is {shown(value)}; expected true or false")
        wanted[key] = bool(value)
    before = core.bos_id if wanted["add_bos_token"] else None
    after = core.eos_id if wanted["add_eos_token"] else None
    return core.with_template(before, after)


def config_text(tokenizer: CoreTokenizer, attributes: TokenizerAttributes) -> str:
    """Return the ``tokenizer_config.json`` from which transformers and `with_config` read the same special tokens."""
    ends = zip(END_ROLES, ends_of(tokenizer), strict=True)
    added = {str(token.pop("id")): token for token in json.loads(tokenizer.added_tokens_json())}
    config: dict[str, Any] = {
        "added_tokens_decoder": added,
        **{role: None if token_id is None else tokenizer.id_to_token(token_id) for role, token_id in ends},
        **{role: name for role, name in attributes.roles.items() if role in ROLES},
        **attributes.settings.as_config(),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if attributes.extra:
        config["extra_special_tokens"] = attributes.extra
    own = {role: name for role, name in attributes.roles.items() if role not in ROLES}
    if own:
        config["model_specific_special_tokens"] = own
    if tokenizer.sentencepiece_model() is not None:  # a tokenizer.json has a post-processor instead
        before, after = template_ids(tokenizer)
        config |= {"add_bos_token": before is not None, "add_eos_token": after is not None}
    return json.dumps(config, ensure_ascii=False, indent=2) + "\n"
