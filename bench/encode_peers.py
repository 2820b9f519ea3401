"""The tokenizers that `bench.encode` compares, each behind the same three methods."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from bench import data
from bench.published import PUBLISHED

Encode: TypeAlias = Callable[[str], Any]


class Peer:
    """One tokenizer with one vocabulary loaded.

    ``prepare`` imports the package and finds the vocabulary's file; ``load``, which is timed, loads it; ``into``
    returns the function that encodes a text without special tokens into ``"numpy"`` or ``"list"``.
    """

    package: ClassVar[str]
    module: ClassVar[str]
    slow: ClassVar[bool] = False  # below 20 MB/s: gets less text

    def __init__(self) -> None:
        """Construct it without a vocabulary."""
        self.loaded: Any = None

    def prepare(self, vocabulary: str) -> None:
        """Import the package and find the vocabulary's file."""
        self.imported = importlib.import_module(self.module)
        self.published = PUBLISHED[vocabulary]
        self.path = data.vocabulary(vocabulary)

    def save_json(self) -> None:
        """Save the vocabulary as a tokenizer.json, for peers that read no other format."""
        from bpe_llama import Tokenizer

        ours = Tokenizer.from_tiktoken(self.path, pattern=self.published.pattern, special_tokens={})
        self.folder = tempfile.TemporaryDirectory()
        self.json = Path(self.folder.name) / "tokenizer.json"
        ours.save(self.json)

    def load(self, vocabulary: str) -> None:
        """Load the vocabulary into ``self.loaded``."""
        raise NotImplementedError

    def into(self, output: str) -> Encode:
        """Return the function that encodes one text."""
        raise NotImplementedError


class Ours(Peer):
    """bpe_llama."""

    package, module = "bpe-llama", "bpe_llama"

    def load(self, vocabulary: str) -> None:
        self.loaded = self.imported.Tokenizer.from_tiktoken(
            self.path, pattern=self.published.pattern, special_tokens=self.published.special_tokens
        )

    def into(self, output: str) -> Encode:
        run: Encode = self.loaded.encode_to_numpy if output == "numpy" else self.loaded.encode_ordinary
        return run


class Gigatoken(Peer):
    """gigatoken: ``encode`` returns NumPy; its batch call returns lists faster than ``tolist``."""

    package = module = "gigatoken"

    def prepare(self, vocabulary: str) -> None:
        super().prepare(vocabulary)
        if vocabulary == "llama3":
            self.save_json()

    def load(self, vocabulary: str) -> None:
        kind = self.imported.Tokenizer
        if vocabulary == "llama3":  # it panics on the published file
            self.loaded = kind.from_json(self.json.read_bytes())
        else:
            self.loaded = kind.from_tiktoken(str(self.path), self.published.pattern, self.published.special_tokens)

    def into(self, output: str) -> Encode:
        run: Encode = self.loaded.encode
        return run if output == "numpy" else lambda text: self.loaded.encode_batch_list([text], parallel=False)[0]


class Toktok(Peer):
    """toktok-rs, through the encoder behind its public function."""

    package, module = "toktok-rs", "toktok"

    def load(self, vocabulary: str) -> None:
        self.loaded = self.imported._Tokenizer(f"{vocabulary}_base", "")

    def into(self, output: str) -> Encode:
        if output == "numpy":
            return lambda text: self.loaded.encode_to_numpy(text, disallowed_special=())
        run: Encode = self.loaded.encode_ordinary
        return run


class Quicktok(Peer):
    """quicktok: its batch call returns NumPy."""

    package, module = "quicktok-v1", "quicktok"

    def load(self, vocabulary: str) -> None:
        self.loaded = self.imported.get_encoding("llama3" if vocabulary == "llama3" else f"{vocabulary}_base")

    def into(self, output: str) -> Encode:
        if output == "numpy":
            return lambda text: self.loaded.encode_batch([text], threads=1)[0]
        run: Encode = self.loaded.encode_ordinary
        return run


class Tiktoken(Peer):
    """tiktoken, the reference for ids."""

    package = module = "tiktoken"
    slow = True

    def load(self, vocabulary: str) -> None:
        self.loaded = self.published.as_tiktoken()

    def into(self, output: str) -> Encode:
        if output == "numpy":
            return lambda text: self.loaded.encode_to_numpy(text, disallowed_special=())
        run: Encode = self.loaded.encode_ordinary
        return run


class HuggingFace(Peer):
    """tokenizers, with our tokenizer.json; it has no NumPy output, so lists are timed for both outputs."""

    package = module = "tokenizers"
    slow = True

    def prepare(self, vocabulary: str) -> None:
        super().prepare(vocabulary)
        self.save_json()

    def load(self, vocabulary: str) -> None:
        self.loaded = self.imported.Tokenizer.from_file(str(self.json))

    def into(self, output: str) -> Encode:
        return lambda text: self.loaded.encode(text, add_special_tokens=False).ids


PEERS: dict[str, type[Peer]] = {
    "ours": Ours,
    "gigatoken": Gigatoken,
    "toktok": Toktok,
    "quicktok": Quicktok,
    "tiktoken": Tiktoken,
    "tokenizers": HuggingFace,
}


def load_peers(vocabulary: str) -> tuple[dict[str, Peer], dict[str, str]]:
    """Return the peers that load this vocabulary, and the error of each other peer."""
    peers, missing = {}, {}
    for name, kind in PEERS.items():
        peer = kind()
        try:
            peer.prepare(vocabulary)
            peer.load(vocabulary)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):  # a Rust panic is no Exception either
                raise
            missing[name] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        else:
            peers[name] = peer
    return peers, missing
