"""Tokenizers that only the `tokenizers` library opens, such as WordPiece and Unigram models, for comparisons."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bpe_llama._by_name import open_tokenizer
from bpe_llama.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class OtherTokenizer:
    """A ``tokenizer.json`` in the `tokenizers` library: what `compare` needs of it.

    Args:
        path: The file.

    Raises:
        ImportError: If `tokenizers` is not installed.
        ValueError: If the library cannot read the file.
    """

    def __init__(self, path: Path) -> None:
        try:
            from tokenizers import Tokenizer as Library
        except ImportError as error:
            raise ImportError("the tokenizers library opens this file: pip install tokenizers") from error
        try:
            self._library = Library.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f"{path}: the tokenizers library cannot read it: {error}") from None
        self._library.no_truncation()
        self._library.no_padding()
        parts: dict[str, Any] = json.loads(self._library.to_str())
        model = parts["model"]
        self.kind = str(model["type"])
        """``"WordPiece"``, ``"Unigram"``, ``"BPE"`` or ``"WordLevel"``."""
        self._continuing = str(model.get("continuing_subword_prefix") or "")
        self._is_byte_level = '"ByteLevel"' in json.dumps([parts.get("pre_tokenizer"), parts.get("decoder")])
        unknown = model.get("unk_token")
        index = model.get("unk_id")  # Unigram has the id itself
        self.unknown_id: int | None = index if unknown is None else self._library.token_to_id(unknown)
        """The id that stands for text without a token, if there is one."""

    @property
    def vocab_size(self) -> int:
        """Return the number of ids, added tokens included."""
        return int(self._library.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens around it."""
        return self._library.encode(text, add_special_tokens=False).ids

    def num_bytes(self, token_id: int) -> int:
        """Return how many bytes of text a token stands for."""
        token = str(self._library.id_to_token(token_id))
        if _BYTE.fullmatch(token):
            return 1
        token = token.removeprefix(self._continuing) if self._continuing else token
        # In byte-level vocabularies a character stands for a byte; elsewhere "▁" stands for a space.
        return len(token) if self._is_byte_level else len(token.replace("▁", " ").encode())


def open_any(name: str) -> Tokenizer | OtherTokenizer:
    """Return the tokenizer of a name, as ours if it can be, else through the `tokenizers` library.

    Raises:
        OSError: As of `bpe_llama._by_name.open_tokenizer`.
        ImportError: If only `tokenizers` opens it, which is not installed.
        ValueError: If neither can read it; the message is ours.
    """
    try:
        return open_tokenizer(name)
    except ValueError as error:
        path = _tokenizer_json(name)
        if path is None:
            raise
        try:
            return OtherTokenizer(path)
        except ImportError as missing:
            raise ImportError(f"{error}; {missing}") from None
        except ValueError:
            raise error from None


def _tokenizer_json(name: str) -> Path | None:
    """Return the path of the ``tokenizer.json`` that a name means, if it is one."""
    from bpe_llama._hub.fetching import local_path
    from bpe_llama._loading.load import needed_files

    path = local_path(name, needed_files)
    path = path / "tokenizer.json" if path.is_dir() else path
    return path if path.is_file() and path.suffix == ".json" else None
