"""The tokenizers of the page by name: the ones it was started with, and the ones that visitors drop on it."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path, PurePath
from weakref import WeakKeyDictionary

from bpe_llama.educational import EducationalTokenizer
from bpe_llama.tokenizer import Tokenizer

MAX_DROPPED = 4
"""Dropped tokenizers that are kept; the least recently used one is removed first."""
MAX_DROPPED_BYTES = 128 << 20
"""Bytes of their files together. A tokenizer takes several times the bytes of its file."""
SUFFIXES = (".json", ".tiktoken", ".model", ".gguf")


class Library:
    """Tokenizers by name; threads may share it.

    Args:
        tokenizers: The tokenizers that are never removed, by the names that the page shows.

    Raises:
        ValueError: If there is no tokenizer.
    """

    def __init__(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        if not tokenizers:
            raise ValueError("the page needs at least one tokenizer")
        self.tokenizers = dict(tokenizers)
        self._dropped: OrderedDict[str, Tokenizer] = OrderedDict()
        self._sizes: dict[str, int] = {}
        """Bytes of their files."""
        self._twins: WeakKeyDictionary[Tokenizer, EducationalTokenizer] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        """Held while a file is read or a twin is made, which takes memory and time: one at once."""

    def get(self, name: str | None) -> Tokenizer:
        """Return the tokenizer of a name; the first one for None.

        Raises:
            KeyError: If there is none of this name.
        """
        with self._lock:
            if name is None:
                return next(iter(self.tokenizers.values()))
            if name in self._dropped:
                self._dropped.move_to_end(name)
                return self._dropped[name]
            return self.tokenizers[name]

    def twin(self, name: str | None) -> EducationalTokenizer:
        """Return the `EducationalTokenizer` of a tokenizer, which shows its merges.

        Raises:
            KeyError: If there is no tokenizer of this name.
            ValueError: If the tokenizer does more than split text into pre-tokens and merge their bytes.
        """
        tokenizer = self.get(name)
        with self._loading:
            if tokenizer not in self._twins:
                self._twins[tokenizer] = EducationalTokenizer.from_tokenizer(tokenizer)
            return self._twins[tokenizer]

    def drop(self, file_name: str, content: bytes) -> tuple[str, Tokenizer]:
        """Load the content of a tokenizer's file; return the name it has from now on, and the tokenizer.

        The content is written to a temporary folder, read and removed. Of ``file_name`` the suffix tells the format;
        its last part and a hash of the content are the name.

        Raises:
            ValueError: If the suffix or the content is not that of a tokenizer.
        """
        suffix = PurePath(file_name).suffix.lower()
        if suffix not in SUFFIXES:
            raise ValueError(f"the file ends in {suffix!r}; expected one of {', '.join(SUFFIXES)}")
        with self._loading, tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ("tokenizer" + suffix)
            path.write_bytes(content)
            try:
                tokenizer = Tokenizer.from_file(path)
            except (ValueError, KeyError, OSError) as error:
                raise ValueError(str(error).replace(f"{folder}/", "")) from None
        name = f"{PurePath(file_name).name} ({hashlib.sha256(content).hexdigest()[:8]})"
        with self._lock:
            self._dropped[name], self._sizes[name] = tokenizer, len(content)
            self._dropped.move_to_end(name)
            while len(self._dropped) > MAX_DROPPED or sum(self._sizes.values()) > MAX_DROPPED_BYTES:
                forgotten, _ = self._dropped.popitem(last=False)
                del self._sizes[forgotten]
        return name, tokenizer
