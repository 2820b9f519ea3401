"""GGUF files written by the gguf package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf


def write_gguf(path: Path, metadata: dict[str, Any]) -> Path:
    """Write a file without tensors, and return its path; empty lists are left out, since the package refuses them."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, list) and not value:
            continue
        kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
