"""The recipes, in their smallest form, run from a shell as a person runs them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bpe_llama.model import training
from tests.block_runner import BlockRunner

RECIPES = Path(__file__).parents[3] / "recipes"
SMALL = {"VOCAB": "300", "STEPS": "3", "BATCH": "2", "LENGTH": "32", "HIDDEN": "48", "LAYERS": "1"}


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_tinystories_on_a_folder_of_text(tmp_path: Path, runner: BlockRunner) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(8):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"Once upon a time there were {number} foxes. " * 20)
    command = f"bash {RECIPES / 'tinystories.sh'} texts"
    first = runner.run("sh", command, tmp_path, OUT="out", **SMALL)
    assert first.returncode == 0, first.stderr
    assert [line["step"] for line in training.read_metrics(tmp_path / "out" / "run" / "metrics.jsonl")] == [3, 3]
    samples = [json.loads(line) for line in (tmp_path / "out" / "run" / "samples.jsonl").read_text().splitlines()]
    assert [sample["prompt"] for sample in samples] == ["Once upon a time", "Tom and Lily"]
    assert (tmp_path / "out" / "model.gguf").stat().st_size > 10_000
    again = runner.run("sh", command, tmp_path, OUT="out", **SMALL)
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
