"""`--teacher`: distillation from the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama.cli import main
from bpe_llama.model import LlamaForCausalLM, training
from tests.unit.model_commands.helpers import TEXT, finetune, pretrain


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in training.read_metrics(folder / "metrics.jsonl") if "loss" in line]


def test_pretrain_learns_from_a_teacher(made: Path, tmp_path: Path) -> None:
    teacher = str(made / "run" / "model")
    more = ["--log-every", "1", "--teacher", teacher, "--teacher-weight", "1", "--teacher-temperature", "1"]
    again = ["--start-from", teacher, "--steps", "1", "--learning-rate", "1e-9"]
    alike = pretrain(made, tmp_path / "self", *more, *again, shape=())
    assert main(alike) == 0  # a model is its own teacher: nothing to learn
    assert abs(losses(tmp_path / "self")[0]) < 1e-5
    assert main(pretrain(made, tmp_path / "run", *more, "--steps", "6", "--seed", "5")) == 0
    found = losses(tmp_path / "run")
    assert 0 < found[-1] < found[0] < 1  # a divergence, far below the cross-entropy of 5.6
    assert LlamaForCausalLM.from_pretrained(tmp_path / "run" / "model", device="cpu").config.vocab_size == 280


@pytest.mark.parametrize("kind", [[], ["--full"], ["--dtype", "bfloat16"]])
def test_finetune_learns_from_a_teacher(made: Path, tmp_path: Path, kind: list[str]) -> None:
    assert main(finetune(made, tmp_path / "plain", *kind, "--seed", "3")) == 0
    more = ["--seed", "3", "--teacher", str(made / "run" / "model")]
    assert main(finetune(made, tmp_path / "none", *kind, *more, "--teacher-weight", "0")) == 0
    assert losses(tmp_path / "none") == pytest.approx(
        losses(tmp_path / "plain"), rel=1e-4 if kind != ["--dtype", "bfloat16"] else 1e-2
    )
    assert main(finetune(made, tmp_path / "half", *kind, *more)) == 0
    assert losses(tmp_path / "half")[0] < 0.6 * losses(tmp_path / "plain")[0]  # half of it: it begins as its teacher


def test_what_cannot_teach_is_one_line(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, larger = tmp_path / "other", tmp_path / "larger"
    model = LlamaForCausalLM.from_pretrained(made / "run" / "model", device="cpu")
    model.save_pretrained(other)
    Tokenizer.train_from_iterator([TEXT.upper()], vocab_size=280, progress=False).save(other)
    model.resize_token_embeddings(300)
    model.save_pretrained(larger)
    Tokenizer.from_file(made / "run" / "model").save(larger)
    out = tmp_path / "out"
    for more, message in (
        (["--teacher", str(tmp_path / "none")], str(tmp_path / "none")),
        (["--teacher", str(other)], "in the old tokenizer and"),
        (["--teacher", str(larger)], "the teacher's vocabulary has 300 ids and the model's 280"),
        (["--teacher", str(made / "run" / "model"), "--teacher-weight", "2"], "alpha is 2.0; expected 0 to 1"),
        (["--teacher-temperature", "2"], "--teacher-temperature is for --teacher"),
    ):
        for command in (pretrain(made, out, *more), finetune(made, out, *more)):
            torch.manual_seed(0)
            assert main(command) == 2
            said = capsys.readouterr().err
            assert message in said.splitlines()[-1], said
