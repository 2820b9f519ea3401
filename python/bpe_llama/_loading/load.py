"""Load a tokenizer of any format: find its file, recognise the format, read it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Generator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, TypeAlias

from bpe_llama._arguments import path as checked_path
from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._ends import ends_of
from bpe_llama._files import PathLike, complete_writes, open_regular
from bpe_llama._gguf import reader as gguf
from bpe_llama._hub.gguf_files import choose_gguf, only_gguf
from bpe_llama._loading import tekken, tiktoken, vocab_and_merges
from bpe_llama._loading.folder import TokenizerAttributes, with_config, with_ranks_config
from bpe_llama._loading.settings import Settings
from bpe_llama.chat.templates import NAMED_FOLDER


def load(path: PathLike) -> tuple[CoreTokenizer, TokenizerAttributes]:
    """Return the tokenizer in a file or folder, and the content of the files beside it.

    Raises:
        FileNotFoundError: If there is no such file, or no tokenizer in the folder.
        ValueError: If the file is of no known format, or damaged.
    """
    path = checked_path("path", path)
    is_folder = path.is_dir()
    file = file_in(path)
    match format_of(file):
        case "gguf":
            return load_gguf(file)
        case "huggingface":
            return with_config(file, is_in_folder=is_folder)
        case "sentencepiece":
            return with_config(file, is_in_folder=is_folder, is_sentencepiece=True)
        case "tiktoken":
            core, settings = tiktoken.read_tokenizer(file)
            if file.suffix == ".tiktoken" and not is_folder:
                return core, TokenizerAttributes(settings=settings)
            core, attributes = with_ranks_config(core, file.parent)
            end_ids = attributes.settings.end_ids or settings.end_ids
            return core, replace(attributes, settings=replace(attributes.settings, end_ids=end_ids))
        case "tekken":
            return with_ranks_config(tekken.read_tokenizer(file), file.parent)
        case "vocab_and_merges":
            return vocab_and_merges.read_tokenizer(file)


def load_huggingface(path: PathLike) -> tuple[CoreTokenizer, TokenizerAttributes]:
    """Return the tokenizer in a ``tokenizer.json`` or its folder, and the content of the files beside it."""
    path = checked_path("path", path)
    is_folder = path.is_dir()
    return with_config(path / "tokenizer.json" if is_folder else path, is_in_folder=is_folder)


def load_gguf(path: PathLike) -> tuple[CoreTokenizer, TokenizerAttributes]:
    """Return the tokenizer in a GGUF file, and the settings and chat templates of its metadata."""
    read = gguf.read_tokenizer(path)
    bos, eos = read.core.bos_id, read.core.eos_id
    core = read.core.with_template(bos if read.add_bos else None, eos if read.add_eos else None)
    settings = Settings(end_ids=tuple(sorted(read.end_ids - {eos})))
    return core, TokenizerAttributes(read.chat_template, settings=settings)


def warn_of_losses(path: Path, core: CoreTokenizer, attributes: TokenizerAttributes) -> None:
    """Warn if a saved file, read again, names other roles, another chat template or other settings."""
    read = load_huggingface(path) if path.suffix == ".json" else load(path)
    ours, theirs = (
        ends_of(tokenizer)._asdict() | rest.roles | {"chat_template": rest.chat_template} | vars(rest.settings)
        for tokenizer, rest in ((core, attributes), read)
    )
    if lost := [name for name in ours | theirs if ours.get(name) != theirs.get(name)]:
        warnings.warn(
            f"{path}: from_file will not find this tokenizer's {', '.join(lost)} there; expected a folder, "
            "where they are written beside it",
            stacklevel=3,
        )


def file_in(path: PathLike) -> Path:
    """Return the file of a tokenizer: the path, or the file in a folder.

    Raises:
        FileNotFoundError: If the folder holds no tokenizer.
        ValueError: If it holds several files of one format.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists() and path.parent.is_dir():
            complete_writes(path.parent)
        return path
    complete_writes(path)
    return path / _vocabulary_in(str(path), [file.name for file in path.iterdir() if file.is_file()])


_NAMES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json")
_SUFFIXES = (".tiktoken", ".gguf")
_BESIDE = (
    *("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json"),
)


def _vocabulary_in(where: str, names: Sequence[str]) -> str:
    """Return the file of a tokenizer among the files of a folder."""
    for name in _NAMES:
        if name in names:
            return name
    for suffix in _SUFFIXES:
        found = sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{where} holds several *{suffix} files: {found}; name one")
    of_run = Path(where, "model")
    hint = f"; {of_run} does" if (of_run / "tokenizer.json").is_file() else ""
    raise FileNotFoundError(f"{where} holds no {', '.join(_NAMES)}, *{' or *'.join(_SUFFIXES)}{hint}")


def needed_files(where: str, files: Sequence[str]) -> Generator[Sequence[str], Path, str]:
    """Choose the files of a tokenizer on the Hub: a vocabulary in one format, and what `load` reads beside it.

    The vocabulary comes last, so that a folder that holds it holds the others. See `bpe_llama._hub.fetching.Needed`.
    """
    here = [file for file in files if "/" not in file]
    is_gguf = not any(name in here for name in _NAMES) and not any(file.endswith(".tiktoken") for file in here)
    name = (only_gguf(where, here) if is_gguf else None) or _vocabulary_in(where, here)
    if name.endswith(".gguf"):
        return (yield from choose_gguf(where, here, name))
    beside = [file for file in here if file in (*_BESIDE, f"{name}.json")]
    beside += [file for file in files if fnmatch(file, f"{NAMED_FOLDER}/*.jinja")]
    if beside:
        yield beside
    yield [name, "merges.txt"] if name == "vocab.json" and "merges.txt" in here else [name]
    return ""


Format: TypeAlias = Literal["gguf", "huggingface", "sentencepiece", "tekken", "tiktoken", "vocab_and_merges"]

# The first key of a JSON object, and the first character of its value.
_FIRST_KEY = re.compile(rb'\s*\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*(.)')
_TEKKEN_KEYS = {b"config", b"vocab", b"special_tokens", b"type", b"image", b"multimodal", b"audio"}


def format_of(path: Path) -> Format:
    """Return the format of a file by its first bytes; of ``vocab.json`` and ``merges.txt`` by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the format is unknown.
    """
    with open_regular(path) as file:
        head = file.read(4096)
    if head[:4] == b"GGUF":
        return "gguf"
    if path.name in ("vocab.json", "merges.txt"):
        return "vocab_and_merges"
    if head.startswith(b"#version"):
        raise ValueError(
            f"{path}: begins with '#version', like a merges.txt; expected that name, with vocab.json beside it"
        )
    if head.lstrip()[:1] == b"{":
        return _format_of_json(path, head)
    if path.suffix == ".json":
        why = "a byte order mark" if head.startswith(b"\xef\xbb\xbf") else repr(head[:16])
        raise ValueError(f"{path}: expected a JSON object, but it begins with {why}")
    # A SentencePiece model begins with the field of its first piece, which begins with the field of its text.
    if head[:1] == b"\n" and head[2:3] == b"\n":
        return "sentencepiece"
    if b" " in head.split(b"\n")[0]:
        return "tiktoken"
    raise ValueError(
        f"{path}: expected a tokenizer.json, a tokenizer.model, a tekken.json, a vocab.json, a .tiktoken or a .gguf "
        f"file, but it begins with {head[:16]!r}"
    )


def _format_of_json(path: Path, head: bytes) -> Format:
    """Return whether a JSON file is a tokenizer.json or a tekken.json, by its name or its first key."""
    first = _FIRST_KEY.match(head)
    if path.name == "tokenizer.json" or first is None:
        return "huggingface"
    if first[1] in _TEKKEN_KEYS:
        return "tekken"
    if first[2].isdigit() and first[1] != b"version":
        raise ValueError(
            f"{path}: begins with {first[1].decode(errors='replace')!r} and a number, like a vocab.json; expected that "
            "name, with merges.txt beside it"
        )
    return "huggingface"
