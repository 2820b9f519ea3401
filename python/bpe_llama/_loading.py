"""Which file holds a tokenizer, in what format, and what the files beside it say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from bpe_llama import _core
from bpe_llama._chat_templates import ChatTemplate, read_chat_templates
from bpe_llama._files import PathLike


def file_in(path: PathLike) -> Path:
    """Return the file of a tokenizer: the path itself, or what a folder holds."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in ("tokenizer.json", "tokenizer.model"):
        if (path / name).is_file():
            return path / name
    for suffix in ("*.tiktoken", "*.gguf"):
        found = sorted(file for file in path.glob(suffix) if not file.name.startswith("."))
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{path} holds several {suffix} files: {[file.name for file in found]}; name one")
    raise FileNotFoundError(f"{path} holds no tokenizer.json, tokenizer.model, *.tiktoken or *.gguf")


def format_of(path: Path) -> Literal["gguf", "huggingface", "sentencepiece", "tiktoken"]:
    """Return the format of a file by its first bytes."""
    with path.open("rb") as file:
        head = file.read(64)
    if head[:4] == b"GGUF":
        return "gguf"
    if head.lstrip()[:1] == b"{":
        return "huggingface"
    # The first field of a SentencePiece model is a message, that of the first piece, whose first field is a string.
    if head[:1] == b"\n" and head[2:3] == b"\n":
        return "sentencepiece"
    if b" " in head.split(b"\n")[0]:
        return "tiktoken"
    raise ValueError(
        f"{path}: expected a tokenizer.json, a tokenizer.model, a .tiktoken or a .gguf file, "
        f"but it begins with {head[:16]!r}"
    )


def with_config(path: Path, build: Callable[[bytes], _core.Tokenizer]) -> tuple[_core.Tokenizer, ChatTemplate | None]:
    """Return the tokenizer in a file with the end tokens that files beside it name, and their chat template.

    These files are Hugging Face's ``tokenizer_config.json`` and ``chat_template.jinja``.
    """
    try:
        core = build(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    config_path = path.with_name("tokenizer_config.json")
    if not config_path.is_file():
        return core, read_chat_templates(path.parent, {})
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
    return core, read_chat_templates(path.parent, config)
