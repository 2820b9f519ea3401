"""Small files: text, JSON and atomic writes (`read_write`); a folder locked for one run (`lock`)."""

from bpe_llama._files.lock import locked
from bpe_llama._files.read_write import PathLike, atomic_write, read_json, read_json_object, read_text, write_text

__all__ = ["PathLike", "atomic_write", "locked", "read_json", "read_json_object", "read_text", "write_text"]
