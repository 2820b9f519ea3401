"""The commands that write, and what they read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bpe_llama import Tokenizer, WordCounts
from bpe_llama.cli import main as bpe_llama

TEXT = "the thing that they think of, and 12 others; a longer text has more words than a shorter one.\n"


class Command(NamedTuple):
    """A command with an output in ``out/``: what the old output is made with, and the command itself."""

    old: Callable[[], Any]
    new: Callable[[], Any]
    resumes: bool = False
    """Whether the command goes on after a kill. Else its output is replaced."""
    by_file: bool = False
    """Whether each file is replaced by itself, as `Tokenizer.save` documents it."""
    needs_model: bool = False


def cli(*arguments: str) -> Callable[[], int]:
    return lambda: bpe_llama([*arguments, "--quiet"])


def _count(vocabulary: str) -> None:
    WordCounts.from_files(f"{vocabulary}.txt", progress=False).save("out/words.counts")


def _encode_files(name: str) -> None:
    Tokenizer.from_file("a.json").encode_files(f"{name}.txt", "out/ids.npy", progress=False)


def _save_model(seed: int) -> None:
    from tests.small_models import tiny_model

    tiny_model(seed, vocab_size=300, num_hidden_layers=1 + seed).save_pretrained(Path("out/model"))


def _save_vocabulary(name: str) -> None:
    Tokenizer.from_file(f"{name}.json").save(Path("out/v.tiktoken"))


def _save_folder(name: str) -> None:
    Tokenizer.from_file(f"{name}.json").save(Path("out/tokenizer.json"))


def _nothing() -> None:
    Path("out").mkdir(exist_ok=True)


_PRETRAIN = "pretrain a.npy --tokenizer a.json --out out --config config.json --steps 8 --sequence-length 16 --warmup 1"
_FINETUNE = "finetune a.txt --model base --out out --steps 6 --sequence-length 16 --warmup 1"
_RUN = "--batch-size 2 --save-every 2 --resume --device cpu"
COMMANDS: dict[str, Command] = {
    "train-tokenizer": Command(
        cli("train-tokenizer", "a.txt", "--vocab-size", "280", "--out", "out/t.json", "--no-report"),
        cli("train-tokenizer", "b.txt", "--vocab-size", "290", "--out", "out/t.json", "--no-report"),
    ),
    "encode": Command(
        cli("encode", "--file", "a.txt", "--tokenizer", "a.json", "--out", "out/ids.npy"),
        cli("encode", "--file", "b.txt", "--tokenizer", "b.json", "--out", "out/ids.npy"),
    ),
    "encode-files": Command(
        lambda: _encode_files("a"),
        lambda: _encode_files("long"),
    ),
    "counts": Command(lambda: _count("a"), lambda: _count("long")),
    "save-tiktoken": Command(lambda: _save_vocabulary("a"), lambda: _save_vocabulary("b"), by_file=True),
    "save-tokenizer": Command(lambda: _save_folder("a"), lambda: _save_folder("b"), by_file=True),
    "encode-corpus": Command(
        _nothing,
        cli("encode-corpus", "a.txt", "b.txt", "long.txt", "-t", "a.json", "-o", "out", "--shard-tokens", "300"),
        resumes=True,
    ),
    "pretrain": Command(_nothing, cli(*f"{_PRETRAIN} {_RUN}".split()), resumes=True, needs_model=True),
    "finetune": Command(_nothing, cli(*f"{_FINETUNE} {_RUN}".split()), resumes=True, needs_model=True),
    "convert-gguf": Command(
        cli("convert", "base", "out/m.gguf"),
        cli("convert", "base", "out/m.gguf", "--dtype", "float16"),
        needs_model=True,
    ),
    "convert-folder": Command(
        cli("convert", "base", "out/model"), cli("convert", "other", "out/model"), needs_model=True
    ),
    "save": Command(lambda: _save_model(0), lambda: _save_model(1), needs_model=True),
}


def inputs(folder: Path, *, model: bool) -> None:
    """Write what the commands read to ``folder``."""
    for name, text, size in (("a", TEXT * 20, 285), ("b", TEXT.upper() * 30, 290)):
        (folder / f"{name}.txt").write_text(text)
        tok = Tokenizer.train_from_iterator([text], size, special_tokens=["<|end|>"], progress=False)
        tok.save(folder / f"{name}.json")
    (folder / "long.txt").write_text(" ".join(f"w{i * i}x" for i in range(8000)))
    Tokenizer.from_file(folder / "a.json").encode_files(folder / "a.txt", folder / "a.npy", progress=False)
    if model:
        from tests.small_models import TINY, tiny_model

        (folder / "config.json").write_text(json.dumps(TINY | {"vocab_size": 285, "model_type": "llama"}))
        for name, seed, vocabulary in (("base", 0, "a"), ("other", 1, "b")):
            tiny_model(seed, vocab_size=300, num_hidden_layers=1 + seed).save_pretrained(folder / name)
            Tokenizer.from_file(folder / f"{vocabulary}.json").save(folder / name / "tokenizer.json")
