"""Small tokenizer.json files for the tests of pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Theirs
from tokenizers.pre_tokenizers import ByteLevel

from bpe_llama import Tokenizer

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def described(split: Any, merge: list[str], added: tuple[dict[str, Any], ...] = (), **parts: Any) -> dict[str, Any]:
    """Return a tokenizer.json of 256 bytes, one merge and one Split."""
    vocab = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))} | {"".join(merge): 256}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    step = {"type": "Split", "pattern": split, "behavior": "Isolated", "invert": False}
    return {
        "added_tokens": [{"id": 257 + i, **flags, **token} for i, token in enumerate(added)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [step, BYTE_LEVEL]},
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": [merge]},
        **parts,
    }


def both(file: dict[str, Any], text: str, tmp_path: Path) -> tuple[list[int], list[int]]:
    path = tmp_path / "t.json"
    path.write_text(
        json.dumps(
            {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None} | file
        )
    )
    return Tokenizer.from_file(path).encode(text, allowed_special="all"), Theirs.from_file(str(path)).encode(text).ids
