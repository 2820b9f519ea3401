"""Read a `.tiktoken` file, with the pattern and special tokens that it does not hold.

For a saved tokenizer they are in a JSON file beside it; for published vocabularies, identified by SHA-256, in a table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._files import read_json, write_text


class Attributes(NamedTuple):
    """The parts of an encoding beside its ranks."""

    pattern: str
    special_tokens: dict[str, int]


def _numbered(first: int, names: list[str]) -> dict[str, int]:
    return {name: first + i for i, name in enumerate(names)}


_LLAMA3 = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>"),
]


def _reserved(kind: str, first: int, last: int) -> list[str]:
    return [f"<|{kind}reserved_special_token_{i}|>" for i in range(first, last + 1)]


_LLAMA4 = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>"),
    *_reserved("text_post_train_", 0, 5),
    *("<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>"),
    *_reserved("text_post_train_", 8, 68),
    *("<|image_start|>", "<|image_end|>", *_reserved("vision_", 0, 1), "<|tile_x_separator|>", "<|tile_y_separator|>"),
    *(*_reserved("vision_", 2, 5), "<|image|>", *_reserved("vision_", 6, 6), "<|patch|>"),
    *_reserved("vision_", 7, 1047),
    *(*_reserved("reasoning_", 0, 7), "<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"),
]

# Sources: tiktoken_ext/openai_public.py of tiktoken 0.14, llama_models/llama3/tokenizer.py and llama4/tokenizer.py of
# llama-models 0.3.0, dashscope/tokenizers/qwen_tokenizer.py of dashscope 2.0.2.
_PUBLISHED = {
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": Attributes("r50k", {"<|endoftext|>": 50256}),
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": Attributes("r50k", {"<|endoftext|>": 50256}),
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": Attributes(
        "cl100k",
        _numbered(100257, ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"])
        | {"<|endofprompt|>": 100276},
    ),
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": Attributes(
        "o200k", {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}
    ),
    "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55": Attributes(
        "llama3",
        _numbered(128000, [*_LLAMA3, *(f"<|reserved_special_token_{i}|>" for i in range(2, 258 - len(_LLAMA3)))]),
    ),
    "d0bdbaf59b0762c8c807617e2d8ea51420eb1b1de266df2495be755c8e0ed6ed": Attributes(
        "o200k", _numbered(200000, [*_LLAMA4, *_reserved("", 0, 2047 - len(_LLAMA4))])
    ),
    "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186": Attributes(
        "qwen2",
        _numbered(151643, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]),
    ),
}


def read_tokenizer(
    path: Path, pattern: str | None = None, special_tokens: Mapping[str, int] | None = None
) -> CoreTokenizer:
    """Return the tokenizer of a `.tiktoken` file; see :meth:`bpe_llama.Tokenizer.from_tiktoken`."""
    if pattern is None:
        stated = tiktoken_attributes(path)
        pattern = stated.pattern
        special_tokens = stated.special_tokens if special_tokens is None else special_tokens
    return CoreTokenizer.build_from_tiktoken(path, pattern, checked_ids(special_tokens))


def checked_ids(special_tokens: Mapping[str, int] | None) -> list[tuple[str, int]]:
    """Return special tokens as the core takes them.

    Raises:
        ValueError: If an id is out of the core's range.
    """
    for token, token_id in (special_tokens or {}).items():
        if not 0 <= token_id < 2**21:
            raise ValueError(f"special token {token!r} has id {token_id}; expected 0 to {2**21 - 1}")
    return list((special_tokens or {}).items())


def tiktoken_attributes(path: Path) -> Attributes:
    """Return the pattern and special tokens of a `.tiktoken` file.

    Raises:
        ValueError: If they are unknown, or the file that holds them is damaged.
    """
    json_path = _json_path(path)
    if json_path.is_file():
        stated = read_json(json_path)
        try:
            return Attributes(str(stated["pattern"]), {str(k): int(v) for k, v in stated["special_tokens"].items()})
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{json_path}: expected an object with pattern and special_tokens: {error!r}") from None
    published = _PUBLISHED.get(hashlib.sha256(path.read_bytes()).hexdigest())
    if published is None:
        raise ValueError(
            f"{path}: a .tiktoken file does not hold its splitting pattern, and this is no published vocabulary: "
            f"use Tokenizer.from_tiktoken(path, pattern=..., special_tokens=...)"
        )
    return published


def write_attributes(path: Path, pattern: str, special_tokens: Mapping[str, int]) -> None:
    """Write the pattern and special tokens of a `.tiktoken` file beside it."""
    text = json.dumps({"pattern": pattern, "special_tokens": dict(special_tokens)}, ensure_ascii=False, indent=1)
    write_text(_json_path(path), text + "\n")


def _json_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")
