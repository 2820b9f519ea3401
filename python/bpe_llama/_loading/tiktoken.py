"""Read a `.tiktoken` file, with the pattern, special tokens and their roles that it does not hold.

For a saved tokenizer they are in a JSON file beside it; for published vocabularies in `published`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bpe_llama._arguments import check_surrogates, instance, integer, string
from bpe_llama._arguments import path as checked_path
from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._core import shown
from bpe_llama._ends import Ends, ends_of
from bpe_llama._files import PathLike, read_json, write_text
from bpe_llama._loading.published.cache import sha256_of, vocabulary_file
from bpe_llama._loading.published.vocabularies import published_by_name, published_by_sha256
from bpe_llama._loading.settings import Settings


class Attributes(NamedTuple):
    """The parts of an encoding beside its ranks.

    Attributes:
        pattern: The pattern that splits text.
        special_tokens: Special tokens to id.
        ends: Fields of :class:`Ends`. For missing fields the names of special tokens decide.
        end_ids: Ids other than ``eos_id`` that end generation.
    """

    pattern: str
    special_tokens: Mapping[str, int]
    ends: Mapping[str, int | None]
    end_ids: tuple[int, ...]


def read_tokenizer(
    path: PathLike, pattern: str | None = None, special_tokens: Mapping[str, int] | None = None
) -> tuple[CoreTokenizer, Settings]:
    """Return the tokenizer of a `.tiktoken` file; see :meth:`bpe_llama.Tokenizer.from_tiktoken`."""
    path = checked_path("path", path)
    stated = Attributes("", {}, {}, ())
    is_stated = pattern is None and special_tokens is None
    if pattern is None:
        stated = tiktoken_attributes(path)
        pattern = stated.pattern
        if special_tokens is not None:
            stated = stated._replace(special_tokens=special_tokens, ends={}, end_ids=())
        special_tokens = stated.special_tokens
    try:
        core = CoreTokenizer.build_from_tiktoken(path, pattern, checked_ids(special_tokens))
        for token_id in stated.end_ids:
            core.id_to_bytes(token_id)
        core = core.with_ends(*ends_of(core)._replace(**stated.ends))
    except (KeyError, ValueError, OverflowError) as error:
        message = str(error.args[0])
        if isinstance(error, KeyError) or (is_stated and str(path) not in message):
            raise ValueError(f"{_json_path(path)}: {message}") from None
        raise
    return core, Settings(end_ids=stated.end_ids)


def checked_ids(special_tokens: Mapping[str, int] | None) -> list[tuple[str, int]]:
    """Return special tokens as the core takes them.

    Raises:
        TypeError: If they are no mapping of `str` to `int`.
        ValueError: If an id is out of the core's range, or a token holds a lone surrogate.
    """
    given = {} if special_tokens is None else special_tokens
    instance("special_tokens", given, Mapping, "a mapping of str to id")
    for token, token_id in given.items():
        check_surrogates("a special token", string("a special token", token))
        if not 0 <= integer(f"the id of special token {shown(token)}", token_id) < 2**21:
            raise ValueError(f"special token {shown(token)} has id {shown(token_id)}; expected 0 to {2**21 - 1}")
    return list(given.items())


def tiktoken_attributes(path: Path) -> Attributes:
    """Return the pattern, special tokens and their roles of a `.tiktoken` file.

    Raises:
        ValueError: If they are unknown, or the file that holds them is damaged.
    """
    json_path = _json_path(path)
    if json_path.is_file():
        stated = read_json(json_path)
        try:
            special = instance("special_tokens", stated["special_tokens"], Mapping, "a mapping of str to id")
            ends = {
                key: None if stated[key] is None else integer(key, stated[key], least=0)
                for key in Ends._fields
                if key in stated
            }
            end_ids = instance("end_ids", stated.get("end_ids", []), list, "a list of ids")
            found = Attributes(
                string("pattern", stated["pattern"]),
                dict(checked_ids(special)),
                ends,
                tuple(integer("an id of end_ids", token_id, least=0) for token_id in end_ids),
            )
            sha256 = stated.get("sha256")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{json_path}: expected an object with pattern and special_tokens: {error!r}") from None
        actual = sha256_of(path)
        if sha256 not in (None, actual):
            raise ValueError(
                f"{json_path}: sha256 is {shown(sha256)}, but that of {path.name} is {actual!r}; expected the pattern "
                "and special tokens of this vocabulary. Perhaps saving was killed between the two files: save it again"
            )
        return found
    published = published_by_sha256(sha256_of(path))
    if published is None:
        raise ValueError(
            f"{path}: a .tiktoken file does not hold its splitting pattern, and this is no published vocabulary: "
            f"use Tokenizer.from_tiktoken(path, pattern=..., special_tokens=...)"
        )
    return Attributes(published.pattern, published.special_tokens, {}, ())


def read_published(name: str) -> CoreTokenizer:
    """Return the tokenizer of a published vocabulary; see :meth:`bpe_llama.Tokenizer.from_name`."""
    published = published_by_name(name)
    path = vocabulary_file(name, published)
    core = CoreTokenizer.build_from_tiktoken(path, published.pattern, list(published.special_tokens.items()))
    if not published.normalizes:
        return core
    described = json.loads(core.to_huggingface())
    described["normalizer"] = {"type": "NFC"}
    return CoreTokenizer.build_from_huggingface(json.dumps(described).encode())


def write_attributes(path: Path, written: Path, core: CoreTokenizer, end_ids: Sequence[int]) -> None:
    """Write the pattern, special tokens and their roles of a `.tiktoken` file beside it, and the file's SHA-256.

    By the SHA-256 a reader sees if saving was killed between the two files.

    Args:
        path: The `.tiktoken` file.
        written: Where its content is now, which will replace it.
        core: The tokenizer.
        end_ids: The ids that end a text.
    """
    attributes = {
        "pattern": core.pattern,
        "special_tokens": core.special_tokens,
        **ends_of(core)._asdict(),
        "end_ids": list(end_ids),
        "sha256": sha256_of(written),
    }
    write_text(_json_path(path), json.dumps(attributes, ensure_ascii=False, indent=1) + "\n")


def _json_path(path: Path) -> Path:
    return Path(f"{path}.json")
