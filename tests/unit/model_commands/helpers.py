"""Command lines that the tests of the model's commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

TEXT = "The quick brown fox jumps over the lazy dog, and then over another dog. " * 60
SHAPE = ["--hidden-size", "32", "--layers", "1", "--heads", "2", "--context", "64"]
RUN = ["--steps", "4", "--sequence-length", "32", "--batch-size", "2", "--device", "cpu"]


def pretrain(folder: Path, out: Path, *more: str, shape: Sequence[str] = SHAPE) -> list[str]:
    files = [str(folder / "tokens.npy"), "--tokenizer", str(folder / "tokenizer.json"), "--out", str(out)]
    return ["pretrain", *files, *shape, *RUN, *more]


def finetune(made: Path, out: Path, *more: str) -> list[str]:
    (made / "notes.txt").write_text(TEXT)
    files = [str(made / "notes.txt"), "--model", str(made / "run" / "model"), "--out", str(out)]
    run = ["--steps", "6", "--batch-size", "2", "--learning-rate", "0.02", "--device", "cpu"]
    return ["finetune", *files, *run, *more]


def talker_of(made: Path) -> Path:
    """Return the folder of the trained model, with a chat template in it."""
    folder = made / "run" / "model"
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder
