"""Files: text and JSON (`read_write`), atomic writes (`atomic_write`), a folder locked for one run (`lock`)."""

from bpe_llama._files.atomic_write import atomic_write
from bpe_llama._files.lock import locked
from bpe_llama._files.read_write import (
    PathLike,
    check_regular,
    open_regular,
    read_bytes,
    read_json,
    read_json_object,
    read_text,
    write_text,
)

__all__ = [
    "PathLike",
    "atomic_write",
    "check_regular",
    "locked",
    "open_regular",
    "read_bytes",
    "read_json",
    "read_json_object",
    "read_text",
    "write_text",
]
