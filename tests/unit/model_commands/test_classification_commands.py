"""`finetune --task classification` and `eval` of a classifier; transformers and peft read what they save."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from bpe_llama import Tokenizer
from bpe_llama.cli import main
from bpe_llama.model import LlamaForSequenceClassification, training

FIELDS = ["--text-field", "body", "--label-field", "mood"]
WORDS = {"fox": ["quick brown fox", "quick fox"], "dog": ["lazy dog", "another lazy dog"], "none": ["jumps", "then"]}


@pytest.fixture(scope="module")
def rows(made: Path) -> Path:
    pick = random.Random(0)
    labels = [label for label in WORDS for _ in range(20)]  # sorted by label, as files often are
    path = made / "moods.jsonl"
    path.write_text("".join(json.dumps({"body": f"The {pick.choice(WORDS[x])}.", "mood": x}) + "\n" for x in labels))
    return path


def finetune(made: Path, rows: Path, out: Path, *more: str) -> int:
    arguments = ["finetune", str(rows), "--model", str(made / "run" / "model"), "--out", str(out), *FIELDS]
    options = ["--task", "classification", "--steps", "25", "--batch-size", "8", "--accumulate", "1"]
    rate = ["--learning-rate", "0.02", "--eval-fraction", "0.3", "--device", "cpu"]
    return main([*arguments, *options, *rate, *more])


def figures(capsys: pytest.CaptureFixture[str], model: Path, rows: Path, *more: str) -> Any:
    capsys.readouterr()
    assert main(["eval", str(model), "--text", str(rows), *FIELDS, "--device", "cpu", "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def full(made: Path, rows: Path) -> Path:
    with torch.enable_grad():
        assert finetune(made, rows, made / "full", "--full") == 0
    return made / "full"


@pytest.fixture(scope="module")
def adapted(made: Path, rows: Path) -> Path:
    with torch.enable_grad():
        assert finetune(made, rows, made / "adapted", "--merge") == 0
    return made / "adapted"


def test_the_held_out_rows_are_reported(made: Path, rows: Path, tmp_path: Path, capsys: Any) -> None:
    with torch.enable_grad():
        assert finetune(made, rows, tmp_path / "out", "--full") == 0
        lines = capsys.readouterr().out.splitlines()
        found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        assert found["labels"] == ["dog", "fox", "none"] and found["texts"] == 18
        assert sum(map(sum, found["confusion"])) == 18 and all(sum(row) for row in found["confusion"])
        assert found["accuracy"] == sum(found["confusion"][n][n] for n in range(3)) / 18 > 0.5
        assert lines[0].startswith("step 25: ") and "nats per text, held-out loss" in lines[0]
        assert lines[1].startswith(f"accuracy {found['accuracy']:.2%} of 18 texts")
        assert lines[2].split() == ["true", "\\", "predicted", "dog", "fox", "none"]
        assert lines[-1] == f"try: bpe-llama eval {tmp_path / 'out' / 'model'} --text {rows} {' '.join(FIELDS)}"
        assert finetune(made, rows, tmp_path / "out", "--full") == 2
        assert "holds a run already" in capsys.readouterr().err
        assert finetune(made, rows, tmp_path / "out", "--full", "--resume") == 0  # finished: the same figures
        assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found


def test_an_interrupted_run_resumes_with_the_same_numbers(
    made: Path, rows: Path, full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.enable_grad():
        with monkeypatch.context() as patch:
            patch.setattr(training.loop.Trainer, "unfinished", lambda self: self.step < 9)
            assert finetune(made, rows, tmp_path / "out", "--full") == 0
        assert finetune(made, rows, tmp_path / "out", "--full", "--resume") == 0
    ours, whole = (
        LlamaForSequenceClassification.from_pretrained(folder / "model", device="cpu")
        for folder in (tmp_path / "out", full)
    )
    assert torch.equal(ours.score.weight, whole.score.weight)


def test_eval_of_a_classifier(made: Path, rows: Path, full: Path, adapted: Path, capsys: Any) -> None:
    found = figures(capsys, full / "model", rows)
    assert found["texts"] == 60 and found["labels"] == ["dog", "fox", "none"] and found["accuracy"] > 0.5
    assert main(["eval", str(full / "model"), "--text", str(rows), *FIELDS, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith(f"accuracy {found['accuracy']:.2%} of 60 texts, loss {found['loss']:.4f}")
    merged = figures(capsys, adapted / "model", rows)
    beside = figures(capsys, made / "run" / "model", rows, "--adapter", str(adapted / "adapter"))
    assert beside["confusion"] == merged["confusion"] and beside["loss"] == pytest.approx(merged["loss"], rel=1e-3)
    quantized = figures(
        capsys, made / "run" / "model", rows, "--adapter", str(adapted / "adapter"), "--quantize", "int8"
    )
    assert quantized["loss"] == pytest.approx(merged["loss"], rel=0.2)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
def test_transformers_and_peft_give_the_same_logits(made: Path, full: Path, adapted: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="parity with transformers needs it installed")
    peft = pytest.importorskip("peft", reason="parity with peft needs it installed")
    transformers.utils.logging.disable_progress_bar()
    texts = ["The lazy dog.", "The quick brown fox jumps over", "x"]
    ours = LlamaForSequenceClassification.from_pretrained(full / "model", device="cpu")
    tokenizer = Tokenizer.from_file(full / "model")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(full / "model").eval()
    assert theirs.config.id2label == {0: "dog", 1: "fox", 2: "none"} and theirs.config.label2id["fox"] == 1
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(full / "model")
    their_tokenizer.pad_token_id = theirs.config.pad_token_id
    batch = their_tokenizer(texts, padding=True, return_tensors="pt")
    mine = tokenizer(texts, padding=True, pad_id=ours.config.pad_token_id, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert_close(ours(mine["input_ids"]).logits, expected, atol=1e-4, rtol=0)

        base = transformers.AutoModelForSequenceClassification.from_pretrained(made / "run" / "model", num_labels=3)
        base.config.pad_token_id = theirs.config.pad_token_id
        adapter = peft.PeftModel.from_pretrained(base, adapted / "adapter").eval()
        merged = LlamaForSequenceClassification.from_pretrained(adapted / "model", device="cpu")
        expected = adapter(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert_close(merged(mine["input_ids"]).logits, expected, atol=1e-4, rtol=0)


def test_training_goes_on_from_a_classifier(rows: Path, full: Path, tmp_path: Path, capsys: Any) -> None:
    with torch.enable_grad():
        given = ["finetune", str(rows), "--model", str(full / "model"), "--task", "classification", *FIELDS]
        assert main([*given, "--steps", "2", "--device", "cpu", "--out", str(tmp_path / "more")]) == 0
        found = figures(capsys, full / "model", rows, "--adapter", str(tmp_path / "more" / "adapter"))
        assert found["labels"] == ["dog", "fox", "none"]
        other = tmp_path / "other.jsonl"
        other.write_text('{"body": "The fox", "mood": "cat"}\n')
        given[1] = str(other)
        assert main([*given, "--steps", "2", "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
        assert "line 1: 'mood' is 'cat'; expected one of dog, fox, none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "ranking"], "--task is 'ranking'; expected text or classification"),
        (["--task", "text"], "--label-field is for --task classification, and the task is text"),
        (["--train-on", "all"], "--train-on is for --task text, and the task is classification"),
        (["--show-example"], "--show-example is for --task text"),
        (["--teacher-temperature", "5"], "--teacher-temperature is 5.0; it is for --task text"),
        (["--teacher-weight", "0"], "--teacher-weight is 0.0; it is for --task text"),
        (["--label-field", "no"], "expected an object with 'body' and 'no'; its fields are"),
        (["--epochs", "0", "--steps", "0"], "max_steps is 0"),
        (["--eval-fraction", "1"], "60 texts are too few to train on and to hold 100% of them out"),
    ],
)
def test_bad_usage_of_finetune(
    arguments: list[str], message: str, made: Path, rows: Path, tmp_path: Path, capsys: Any
) -> None:
    assert finetune(made, rows, tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "hellaswag"], "the model is a classifier, and --tasks is for models that predict text"),
        (["--stride", "4"], "the model is a classifier, and --stride is for models"),
        (["--window", "65"], "window is 65; expected 1 to the model's context of 64"),
        (["--label-field", "no"], "expected an object with 'body' and 'no'"),
        (["--quantize", "int3"], "--quantize is 'int3'"),
    ],
)
def test_bad_usage_of_eval(arguments: list[str], message: str, rows: Path, full: Path, capsys: Any) -> None:
    assert main(["eval", str(full / "model"), "--text", str(rows), *FIELDS, "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_adapter_without_labels_and_a_model_of_text(
    made: Path, rows: Path, adapted: Path, tmp_path: Path, capsys: Any
) -> None:
    model = str(made / "run" / "model")
    assert main(["eval", model, "--text", str(rows), *FIELDS, "--device", "cpu"]) == 2
    assert f"--label-field is for a classifier, and {model} is none" in capsys.readouterr().err
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((adapted / "adapter" / name).read_bytes())
    assert main(["eval", model, "--text", str(rows), *FIELDS, "--adapter", str(tmp_path), "--device", "cpu"]) == 2
    assert "holds no config.json of a classifier, which names the labels" in capsys.readouterr().err
