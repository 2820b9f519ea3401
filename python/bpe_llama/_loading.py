"""Which file holds a tokenizer, in what format, and what the files beside it say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from bpe_llama import _core
from bpe_llama._files import PathLike


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
    if first is not None and first[2].isdigit():
        return "vocab_and_merges"
    return "tekken" if first is not None and first[1] in _TEKKEN_KEYS else "huggingface"


def with_config(path: Path, build: Callable[[bytes], _core.Tokenizer]) -> tuple[_core.Tokenizer, str | None]:
    """Return the tokenizer in a file with the end tokens that files beside it name, and their chat template.

    These files are Hugging Face's ``tokenizer_config.json`` and ``chat_template.jinja``.
    """
    try:
        core = build(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    config_path = path.with_name("tokenizer_config.json")
    if not config_path.is_file():
        return core, None
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{config_path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{config_path}: expected a JSON object, got a {type(config).__name__}")

    def configured(key: str, default: int | None) -> int | None:
        token = config.get(key)
        content = token.get("content") if isinstance(token, dict) else token
        return core.token_to_id(content) if isinstance(content, str) else default

    core = core.with_bos_eos(configured("bos_token", core.bos_id), configured("eos_token", core.eos_id))
    template = config.get("chat_template")
    template_path = path.with_name("chat_template.jinja")
    if template is None and template_path.is_file():
        template = template_path.read_text(encoding="utf-8")
    return core, template if isinstance(template, str) else None
