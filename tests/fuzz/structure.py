"""Mutations that keep a file's structure: its values are read, one is changed, and the file is written again.

Flipped bytes seldom get past a parser: lengths, quotes and brackets no longer fit. A changed value reaches the checks
behind it.
"""

from __future__ import annotations

import ast
import copy
import json
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bpe_llama._gguf.header import _Parser

_STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 255, 2**31, 2**32 - 1, 2**63, 2**64, 10**30, 0.5, 1e308, math.nan, math.inf),
    *("", "x", "0", " ", "é", "\ud800", "\0", "../x", "<s>", [], [0], ["x"], [[]], {}, {"x": 0}),
)
"""Values that replace others."""


_CANNOT = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)
"""What a structure raises for a file that it cannot read, or values that the file cannot hold."""


@dataclass(frozen=True)
class Structure:
    """How a file is read to lists, dicts, texts and numbers, and written from them; either may raise."""

    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]


def restructured(block: bytes, structure: Structure, draw: random.Random) -> bytes | None:
    """Return a file with one to three values changed; None if it cannot be read, or no change be written."""
    for _ in range(8):  # a file cannot hold every value everywhere
        try:
            root = [structure.read(block)]
            for _ in range(draw.choice((1, 1, 2, 3))):
                _change(root, draw)
            return structure.write(root[0])
        except _CANNOT:
            continue
    return None


def _change(root: list[Any], draw: random.Random) -> None:
    """Replace, edit, remove, repeat or exchange one value."""
    holder, key = _place(root, draw)
    value = holder[key]
    match draw.randrange(6 if holder is not root else 3):
        case 0:
            holder[key] = draw.choice(_STRANGE)
        case 1:
            holder[key] = _edited(value, draw)
        case 2:
            other_holder, other = _place(root, draw)
            holder[key] = copy.deepcopy(other_holder[other])
        case 3:
            del holder[key]
        case 4 if isinstance(holder, list):
            holder.insert(draw.randrange(len(holder) + 1), copy.deepcopy(value))
        case 4:
            holder[_edited(key, draw)] = copy.deepcopy(value)
        case _:
            other = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            holder[key], holder[other] = holder[other], holder[key]


def _place(root: list[Any], draw: random.Random) -> tuple[Any, Any]:
    """Return a list or dict of the tree, and the index or key of a value in it; each level is as likely as the next."""
    holder: Any = root
    key: Any = 0
    while isinstance(inner := holder[key], (list, dict)) and inner and draw.random() < 0.8:
        holder, key = inner, draw.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    return holder, key


def _edited(value: Any, draw: random.Random) -> Any:
    """Return a value near this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return draw.choice([value + 1, value - 1, -value, value * 2, value / 2 if value < 2**64 else 0.5, str(value)])
    if isinstance(value, str):
        at = draw.randrange(len(value) + 1)
        insert = draw.choice(["", "", "a", " ", "▁", "<", "|", "\\", "\n", "é", "\ud800", value[:at]])
        return value[:at] + insert + value[at + draw.choice([0, 0, 1, 4]) :]
    if isinstance(value, list):
        return draw.choice([value[::-1], value * 2, value[: len(value) // 2], [value], draw.sample(value, len(value))])
    if isinstance(value, dict):
        return draw.choice([list(value.values()), list(value), [value], {key: 0 for key in value}])
    return draw.choice(_STRANGE)


# ---- JSON: one value, a value a line, three values with `---` between, or after the byte of an endpoint ----


def _parts(separator: bytes) -> Structure:
    return Structure(
        lambda block: [json.loads(part) for part in block.split(separator) if part.strip()],
        lambda values: separator.join(json.dumps(value).encode() for value in values),
    )


JSON = Structure(json.loads, lambda value: json.dumps(value).encode())
LINES = _parts(b"\n")
JSON_FILES = _parts(b"\n---\n")
REQUEST = Structure(
    lambda block: [block[0], json.loads(block[1:])], lambda value: bytes([value[0]]) + json.dumps(value[1]).encode()
)

# ---- binary files with a header ----


def _read_safetensors(block: bytes) -> list[Any]:
    end = 8 + int.from_bytes(block[:8], "little")
    return [json.loads(block[8:end]), block[end:].decode("latin-1")]


def _write_safetensors(value: list[Any]) -> bytes:
    header = json.dumps(value[0]).encode()
    return len(header).to_bytes(8, "little") + header + value[1].encode("latin-1", "replace")


def _read_npy(block: bytes) -> list[Any]:
    end = 10 + int.from_bytes(block[8:10], "little")
    header = ast.literal_eval(block[10:end].decode("latin-1"))
    return [block[6], header | {"shape": list(header["shape"])}, block[end:].decode("latin-1")]


def _write_npy(value: list[Any]) -> bytes:
    version, header, data = value
    shape = header.get("shape")
    header = repr(header | {"shape": tuple(shape) if isinstance(shape, list) else shape}).encode("latin-1") + b"\n"
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data.encode("latin-1", "replace")


SAFETENSORS = Structure(_read_safetensors, _write_safetensors)
NPY = Structure(_read_npy, _write_npy)


def _read_gguf(block: bytes) -> dict[str, Any]:
    header = _Parser(Path(), cast(Any, block)).header()
    tensors = [[tensor.name, list(tensor.shape), tensor.type_id, 0] for tensor in header.tensors.values()]
    return {"version": header.version, "metadata": header.metadata, "tensors": tensors}


def _write_gguf(value: dict[str, Any]) -> bytes:
    """Return a file whose tensors lie one after another, moved by the last number of each."""
    metadata, tensors, at = value["metadata"], value["tensors"], 0
    out = b"GGUF" + struct.pack("<IQQ", value["version"], len(tensors), len(metadata))
    for key, item in metadata.items():
        out += _text(key) + _gguf_value(item)
    for name, shape, kind, moved in tensors:
        out += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, at + moved)
        at += -(-math.prod(shape) * 4 // 32) * 32
    return out + bytes(-len(out) % 32 + min(at, 1024))


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded


def _gguf_value(value: Any) -> bytes:
    """Return the type of a value and the value; an array holds those of its first item's type."""
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int() if 0 <= value < 2**32:
            return struct.pack("<II", 4, value)
        case int():
            return struct.pack("<Iq", 11, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case list():
            items = [_gguf_value(item) for item in value] or [struct.pack("<I", 8)]
            kind = items[0][:4]
            same = [item[4:] for item in items if item[:4] == kind]
            return struct.pack("<I", 9) + kind + len(same).to_bytes(8, "little") + b"".join(same)
        case _:
            raise TypeError(f"{value!r} has no type in GGUF")


GGUF = Structure(_read_gguf, _write_gguf)

STRUCTURES: dict[str, Structure] = {
    **dict.fromkeys(
        (
            *("python_adapter", "python_any_file", "python_config", "python_model_config", "python_shards"),
            *("python_sidecar", "python_tekken", "python_training_state", "python_vocab"),
        ),
        JSON,
    ),
    **dict.fromkeys(("python_chats", "python_metrics"), LINES),
    "python_gguf": GGUF,
    "python_npy": NPY,
    "python_request": REQUEST,
    "python_safetensors": SAFETENSORS,
    "python_token_files": JSON_FILES,
}
"""The structure of the inputs of a target, if they have one."""
