"""Files: text and JSON (`read_write`), atomic writes of one or several (`atomic_write`), a locked folder (`lock`)."""

from bpe_llama._files.atomic_write import atomic_write, complete_writes, flush, remove_abandoned, write_together
from bpe_llama._files.lock import locked
from bpe_llama._files.read_write import (
    PathLike,
    absolute,
    append_bytes,
    check_regular,
    errors_naming,
    open_regular,
    read_bytes,
    read_json,
    read_json_object,
    read_text,
    write_bytes,
    write_text,
)

__all__ = [
    "PathLike",
    "absolute",
    "append_bytes",
    "atomic_write",
    "check_regular",
    "complete_writes",
    "errors_naming",
    "flush",
    "locked",
    "open_regular",
    "read_bytes",
    "read_json",
    "read_json_object",
    "read_text",
    "remove_abandoned",
    "write_bytes",
    "write_text",
    "write_together",
]
