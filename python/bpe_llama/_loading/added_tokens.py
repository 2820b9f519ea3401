"""The added tokens in a folder's Hugging Face files, and their ids."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._core import shown

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class AddedToken:
    """An added token with the flags of tokenizer.json; ``normalized`` defaults to the opposite of ``special``."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool | None = None
    special: bool = False

    @classmethod
    def read(cls, where: str, value: object) -> AddedToken:
        """Return the token that a JSON object describes.

        Raises:
            ValueError: If it is no object with a content and these flags; the message names the field.
        """
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {shown(value)}; expected an object with the token's content and flags")
        fields = {key: item for key, item in value.items() if key != "__type"}
        if unknown := sorted(fields.keys() - {"content", *_FLAGS}):
            raise ValueError(
                f"{where} has the unknown field {shown(unknown[0])}; expected content, {', '.join(_FLAGS)}"
            )
        if not isinstance(fields.get("content"), str):
            raise ValueError(f"{where}.content is {shown(fields.get('content'))}; expected a str")
        for flag in _FLAGS:
            if not isinstance(fields.get(flag, False), bool):
                raise ValueError(f"{where}.{flag} is {shown(fields[flag])}; expected true or false")
        return cls(**fields)

    @property
    def is_normalized(self) -> bool:
        """Whether the token is searched in normalized text."""
        return not self.special if self.normalized is None else self.normalized

    def for_core(self) -> tuple[str, bool, bool, bool, bool, bool]:
        """Return content and flags as the core takes them: special, single_word, lstrip, rstrip, normalized."""
        return self.content, self.special, self.single_word, self.lstrip, self.rstrip, self.is_normalized

    def as_json(self, token_id: int) -> dict[str, Any]:
        """Return the token as tokenizer.json writes it."""
        flags = {flag: getattr(self, flag) for flag in _FLAGS} | {"normalized": self.is_normalized}
        return {"id": token_id, "content": self.content, **flags}


class AddedTokens:
    """Tokens added to a vocabulary: a token of the vocabulary keeps its id, a new one gets the next id.

    Source: ``AddedVocabulary::add_tokens`` of Hugging Face `tokenizers` 0.23.
    """

    def __init__(self, vocab: Mapping[str, int]) -> None:
        """Begin without added tokens."""
        self._vocab = vocab
        self._taken = set(vocab.values())
        self._next = len(vocab)
        self._tokens: dict[str, tuple[int, AddedToken]] = {}

    def add(self, tokens: Iterable[AddedToken]) -> None:
        """Add tokens in this order; a token added before gets the new flags.

        Raises:
            ValueError: If the next id is in use, since the ids of the vocabulary have a hole.
        """
        for token in tokens:
            if not token.content:
                continue
            token_id = self.id_of(token.content)
            if token_id is None:
                token_id = self._next
                if token_id in self._taken:
                    raise ValueError(
                        f"added token {shown(token.content)} gets id {token_id}, the number of tokens before it, but a "
                        f"token of the vocabulary has that id: its ids have a hole"
                    )
            self._next = max(self._next, token_id + 1)
            self._tokens[token.content] = (token_id, token)

    def id_of(self, content: str) -> int | None:
        """Return the id of a token, added or not."""
        added = self._tokens.get(content)
        return self._vocab.get(content) if added is None else added[0]

    def as_json(self) -> list[dict[str, Any]]:
        """Return the tokens as tokenizer.json lists them."""
        return [token.as_json(token_id) for token_id, token in sorted(self._tokens.values(), key=lambda item: item[0])]


@dataclass(frozen=True)
class StatedTokens:
    """The tokens in the files of a folder.

    Attributes:
        listed: Added tokens, by their ids in the files.
        named: The token of each role, in the order of adding; roles that only this model has come last.
        extra: Special tokens without a role.
    """

    listed: list[AddedToken]
    named: dict[str, str | AddedToken | None]
    extra: list[str | AddedToken]

    def to_add(self) -> list[AddedToken]:
        """Return all tokens in the order in which transformers adds them."""
        contents = {token.content for token in self.listed} | {""}
        names = {_content(token) for token in self.named.values() if token is not None}
        # A token is listed once for each set of flags, at its first place.
        tokens = dict.fromkeys((*self.listed, *(token for token in self._rest if _content(token) not in contents)))
        return [_special(token) if isinstance(token, str) or token.content in names else token for token in tokens]

    @property
    def _rest(self) -> list[str | AddedToken]:
        """The tokens that are not listed: of roles, then those without a role."""
        return [token for token in (*self.named.values(), *self.extra) if token is not None]

    def to_add_by_class(self, name: str) -> list[AddedToken]:
        """Return all tokens in the order in which a class of transformers adds them, some of them twice."""
        stated = self
        if name == "BlenderbotTokenizer" and isinstance(mask := self.named["mask_token"], str):
            token = AddedToken(mask, lstrip=True, normalized=False)
            stated = replace(self, named=self.named | {"mask_token": token})
        tokens = stated.to_add()
        if name == "Qwen2Tokenizer":
            tokens += map(_special, self.all_special())
        if name == "CohereTokenizer":
            tokens += map(_special, self._rest)
        return tokens

    def named_texts(self) -> dict[str, str | None]:
        """Return the text of each role's token, or ``None``."""
        return {role: None if token is None else _content(token) for role, token in self.named.items()}

    def names(self) -> dict[str, str]:
        """Return the text of each role's token, without roles whose token is missing or empty."""
        contents = {role: _content(token) for role, token in self.named.items() if token is not None}
        return {role: content for role, content in contents.items() if content}

    def extra_names(self) -> list[str]:
        """Return the text of each special token without a role, once."""
        return list(dict.fromkeys(filter(None, map(_content, self.extra))))

    def all_special(self) -> list[str]:
        """Return the text of every token with a role and of every extra special token, once."""
        return list(dict.fromkeys((*self.names().values(), *self.extra_names())))


def read_stated_tokens(
    defaults: Mapping[str, str | None],
    config: Mapping[str, Any],
    special_map: Mapping[str, Any],
    added: Mapping[str, Any],
    own: Iterable[Mapping[str, Any]] = (),
) -> StatedTokens:
    """Return the tokens in ``tokenizer_config.json``, ``special_tokens_map.json`` and ``added_tokens.json``.

    The other files are ignored if ``tokenizer_config.json`` has an ``added_tokens_decoder``.

    Args:
        defaults: The tokens of roles that no file names.
        config: The content of tokenizer_config.json.
        special_map: The content of special_tokens_map.json.
        added: The content of added_tokens.json.
        own: The added tokens of tokenizer.json, for a class that does not read them there. Without an
            ``added_tokens_decoder`` they override tokens of added_tokens.json with the same id.

    Raises:
        ValueError: If a token is neither a str nor an object; the message names file and field.

    Source: ``PreTrainedTokenizerBase._from_pretrained`` and ``__init__`` in transformers 5.23.
    """
    stated = _of_config(config)
    late = config.get("additional_special_tokens") if stated.extra is None else None
    if "added_tokens_decoder" in config:
        listed = list(listed_tokens(config).values())
    else:
        _take_special_map(stated, special_map)
        listed = _added_file(added, stated.special(), own)
        late = special_map.get("additional_special_tokens", late)
    by_content = {token.content: token for token in listed}
    named: dict[str, str | AddedToken | None] = {role: defaults.get(role) for role in ROLES}
    named |= {role: name for role, name in defaults.items() if role not in ROLES and config.get(role, name) is not None}
    for role, token in stated.roles.items():
        named[role] = by_content.get(_content(token), token) if token is not None else None
    named.update(stated.found | stated.own)
    extra = _token_list("additional_special_tokens", late) if stated.extra is None else stated.extra
    return StatedTokens(listed, named, extra)


def listed_tokens(config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Return the tokens in the ``added_tokens_decoder`` of a tokenizer_config.json, by their ids there.

    Raises:
        ValueError: If the field is damaged; the message names it.
    """
    where = "tokenizer_config.json: added_tokens_decoder"
    value = config.get("added_tokens_decoder", {})
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {shown(value)}; expected an object of ids and tokens")
    by_id: dict[int, AddedToken] = {}
    for key, token in value.items():
        if not key.isdecimal():
            raise ValueError(f"{where} has the key {shown(key)}; expected an id")
        by_id[int(key)] = AddedToken.read(f"{where}.{key}", token)
    seen: dict[str, AddedToken] = {}
    for token_id, token in by_id.items():
        if seen.setdefault(token.content, token) != token:
            raise ValueError(f"{where}.{token_id} gives token {shown(token.content)} again, with other flags")
    return dict(sorted(by_id.items()))


def warn_of_ignored_ids(folder: Path, core: CoreTokenizer, config: Mapping[str, Any], added: Mapping[str, Any]) -> None:
    """Warn of the first token that has another id in ``core`` than in a file of its folder.

    transformers uses the ids in these files for the order of adding only: a token of the vocabulary keeps its id, and a
    new one gets the next.

    Args:
        folder: The folder.
        core: The tokenizer.
        config: The content of tokenizer_config.json, with a valid ``added_tokens_decoder``.
        added: The content of added_tokens.json, likewise.
    """
    if "added_tokens_decoder" in config:
        where = "tokenizer_config.json: added_tokens_decoder"
        given = [(token["content"], int(key)) for key, token in config["added_tokens_decoder"].items()]
    else:
        where, given = "added_tokens.json", list(added.items())
    ids = {token["content"]: token["id"] for token in json.loads(core.added_tokens_json())}
    for content, token_id in given:
        if content and (has := ids.get(content)) != token_id:
            what = "left out" if has is None else f"{has}"
            warnings.warn(
                f"{folder}: {where} gives token {shown(content)} the id {token_id}, which is ignored: it is {what}",
                stacklevel=5,
            )
            return


@dataclass
class _Stated:
    """The tokens read so far.

    Attributes:
        roles: The token of each named role, or ``None``.
        found: Tokens of other roles, from special_tokens_map.json or objects of the config.
        own: Tokens of other roles that the config names by a str. They are added after ``found``.
        extra: Special tokens without a role; ``None`` if no file has the field.
        objects: Tokens that the config describes by an object. transformers does not match them with the tokens of
            added_tokens.json.
    """

    roles: dict[str, str | AddedToken | None]
    found: dict[str, str | AddedToken]
    own: dict[str, str | AddedToken]
    extra: list[str | AddedToken] | None
    objects: list[str | AddedToken]

    def special(self) -> set[str]:
        """Return the texts of the special tokens in added_tokens.json."""
        tokens = (*self.roles.values(), *(self.extra or []))
        is_object = {id(token) for token in self.objects}
        return {_content(token) for token in tokens if token is not None and id(token) not in is_object}


def _of_config(config: Mapping[str, Any]) -> _Stated:
    where = "tokenizer_config.json: "
    stated = _Stated({}, {}, {}, None, [])
    for role, value in config.items():
        if role in ROLES:
            stated.roles[role] = None if value is None else _token(where + role, value)
        elif role.endswith("_token") and isinstance(value, str):
            stated.own[role] = value
        elif role.endswith("_token") and isinstance(value, dict):
            stated.found[role] = _token(where + role, value)
    key = "extra_special_tokens"
    extra = config.get(key)
    if not extra and "additional_special_tokens" in config:
        key = "additional_special_tokens"
        extra = config[key]
    if isinstance(extra, dict):
        stated.own |= {role: _token(f"{where}{key}.{role}", token) for role, token in extra.items()}
    elif key in config:
        if extra is not None and not isinstance(extra, list):
            raise ValueError(
                f"{where}{key} is {shown(extra)}; expected a list of tokens or an object of names and tokens"
            )
        stated.extra = _token_list(where + key, extra)
    if not stated.own and (own := config.get("model_specific_special_tokens")):
        if not isinstance(own, dict):
            raise ValueError(
                f"{where}model_specific_special_tokens is {shown(own)}; expected an object of names and tokens"
            )
        stated.own = {
            role: _token(f"{where}model_specific_special_tokens.{role}", token) for role, token in own.items()
        }
    tokens = (*stated.roles.values(), *(stated.extra or []))
    stated.objects = [token for token in tokens if isinstance(token, AddedToken)]
    return stated


def _take_special_map(stated: _Stated, special_map: Mapping[str, Any]) -> None:
    """Add the tokens of special_tokens_map.json, which override the config."""
    where = "special_tokens_map.json: "
    for key, value in special_map.items():
        if key == "extra_special_tokens" and isinstance(value, dict):
            stated.own |= {role: _token(f"{where}{key}.{role}", token) for role, token in value.items()}
        elif key == "extra_special_tokens":
            tokens = [token if isinstance(token, str) else _special(token) for token in _token_list(where + key, value)]
            stated.extra = list(dict.fromkeys((*(stated.extra or []), *tokens)))
        elif key.endswith("_token"):
            _take_special(stated, where + key, key, value)
        elif key != "additional_special_tokens":
            raise ValueError(
                f"{where}{key} is {shown(value)}; expected only names that end in _token or _special_tokens"
            )


def _take_special(stated: _Stated, where: str, role: str, value: object) -> None:
    token: str | AddedToken | None
    if isinstance(value, dict):
        token = replace(AddedToken.read(where, value), special=True)
    elif value is None or isinstance(value, str):
        token = value
    else:
        raise ValueError(f"{where} is {shown(value)}; expected a token")
    if role in ROLES:
        stated.roles[role] = token
    elif token is not None:
        stated.found[role] = token


def _added_file(added: Mapping[str, Any], special: set[str], own: Iterable[Mapping[str, Any]] = ()) -> list[AddedToken]:
    by_id: dict[int, AddedToken] = {}
    for content, token_id in added.items():
        if type(token_id) is not int:
            raise ValueError(f"added_tokens.json: token {shown(content)} has id {shown(token_id)}; expected a number")
        is_special = content in special
        by_id[token_id] = AddedToken(content, normalized=not is_special, special=is_special)
    by_id |= {token["id"]: AddedToken(**{key: token[key] for key in token if key != "id"}) for token in own}
    return [by_id[token_id] for token_id in sorted(by_id)]


def _token_list(where: str, value: object) -> list[str | AddedToken]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{where} is {shown(value)}; expected a list of tokens")
    return [_token(where, token) for token in value]


def _token(where: str, value: object) -> str | AddedToken:
    """Return a token of the config: a str, or an object with content and flags."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and "content" in value:
        return AddedToken.read(where, value)
    raise ValueError(f"{where} is {shown(value)}; expected a str or an object with the token's content and flags")


def _special(token: str | AddedToken) -> AddedToken:
    return AddedToken(token, special=True) if isinstance(token, str) else replace(token, special=True)


def _content(token: str | AddedToken) -> str:
    return token if isinstance(token, str) else token.content
