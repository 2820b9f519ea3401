"""`bpe-llama eval`: on text, and on tasks of lm-evaluation-harness."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from bpe_llama import Tokenizer
from bpe_llama.cli import main
from bpe_llama.model import LlamaForCausalLM, evaluation, lora
from bpe_llama.model.evaluation.text import evaluate_text
from tests.unit.model_commands.helpers import TEXT

DOCUMENTS = [TEXT[:500], "The lazy dog.", TEXT[-80:]]


@pytest.fixture(scope="module")
def rows(made: Path) -> Path:
    path = made / "held-out.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in DOCUMENTS))
    return path


def figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main(["eval", *arguments, "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_text(made: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(made / "run" / "model")
    windows = ["--window", "40", "--stride", "16", "--batch-size", "3"]
    found = figures(capsys, model, "--text", str(rows), "--field", "body", *windows)["text"]
    loaded = LlamaForCausalLM.from_pretrained(model, device="cpu")
    tokenizer = Tokenizer.from_file(model)
    expected = evaluate_text(loaded, tokenizer, DOCUMENTS, window=40, stride=16, progress=False)
    assert found == pytest.approx(expected.to_dict(), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(found["nats"] / math.log(2) / found["bytes"])
    assert main(["eval", model, "--text", str(rows), "--field", "body", *windows, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"3 documents, {expected.bytes:,} bytes, {expected.tokens:,} tokens scored"
    assert lines[3] == f"bits per byte    {expected.bits_per_byte:.4f}"


def test_files_and_separators(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(made / "run" / "model")
    (tmp_path / "a.txt").write_text("|".join(DOCUMENTS))
    (tmp_path / "b.txt").write_text(DOCUMENTS[1])
    (tmp_path / "damaged.jsonl").write_text('{"text": 1}\n')
    whole = figures(capsys, model, "--text", str(tmp_path / "a.txt"), "--separator", "|")["text"]
    assert whole["documents"] == 3
    # A glob that the shell expanded.
    both = figures(capsys, model, "--text", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))["text"]
    assert both["documents"] == 2
    with pytest.warns(UserWarning, match="skipped 1 row"):
        figures(capsys, model, "--text", str(tmp_path), "--on-error", "skip")
    assert main(["eval", model, "--text", str(tmp_path), "--device", "cpu"]) == 2
    assert "damaged.jsonl, line 1: field 'text' is 1" in capsys.readouterr().err


def test_gguf_quantized_weights_and_adapters(made: Path, rows: Path, tmp_path: Path, capsys: Any) -> None:
    model, text = str(made / "run" / "model"), ["--text", str(rows), "--field", "body"]
    exact = figures(capsys, model, *text)["text"]
    assert main(["convert", model, str(tmp_path / "model.gguf"), "--dtype", "float32"]) == 0
    assert figures(capsys, str(tmp_path / "model.gguf"), *text)["text"] == pytest.approx(exact, rel=1e-4)
    quantized = figures(capsys, model, *text, "--quantize", "int8")["text"]
    assert quantized["loss"] != exact["loss"] and quantized["loss"] == pytest.approx(exact["loss"], rel=0.05)
    loaded = lora.add(LlamaForCausalLM.from_pretrained(model, device="cpu"), rank=2, init_lora_weights=False)
    lora.save(loaded, tmp_path / "adapter", base=model)
    adapted = figures(capsys, model, *text, "--adapter", str(tmp_path / "adapter"))["text"]
    expected = evaluate_text(loaded, Tokenizer.from_file(model), DOCUMENTS, progress=False)
    assert adapted["loss"] == pytest.approx(expected.loss, rel=1e-4) != exact["loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate on"),
        (["a.txt"], "'a.txt' is an argument beside the model; expected it behind --text"),
        (["--text", "absent.txt"], "absent.txt"),
        (["--text", "{here}", "--limit", "3"], "--limit and --apply-chat-template are for --tasks"),
        (["--text", "{here}", "--on-error", "no"], "on_error is 'no'"),
        (["--text", "{here}", "--window", "1"], "window is 1; expected 2 to the model's context of 64"),
        (["--text", "{here}", "--field", "no"], "line 1: no field 'no'"),
        (["--text", "{here}", "--field", "body", "--quantize", "int3"], "--quantize is 'int3'"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, made: Path, rows: Path, capsys: Any) -> None:
    given = [argument.replace("{here}", str(rows)) for argument in arguments]
    assert main(["eval", str(made / "run" / "model"), *given, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--window 8", "--stride 4", "--separator x", "--field text", "--on-error raise"])
def test_flags_of_text_are_refused_beside_tasks_alone(made: Path, capsys: Any, flag: str) -> None:
    assert main(["eval", str(made / "run" / "model"), "--tasks", "hellaswag", *flag.split()]) == 2
    assert f"{flag.split()[0]} is for --text, which is not given" in capsys.readouterr().err


def test_missing_harness_is_named(made: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("lm_eval.")] + ["lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "bpe_llama.model.evaluation.harness", raising=False)
    monkeypatch.delattr(evaluation, "harness", raising=False)
    assert main(["eval", str(made / "run" / "model"), "--tasks", "hellaswag"]) == 2
    assert "pip install 'bpe_llama[eval]'" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="tasks need lm-evaluation-harness installed")
@pytest.mark.filterwarnings("ignore:::(?!bpe_llama)")
def test_tasks(made: Path, tmp_path: Path, capsys: Any) -> None:
    questions = [{"q": "The quick brown", "choices": [" fox", " cat"], "a": 0}] * 3
    (tmp_path / "data.json").write_text("\n".join(map(json.dumps, questions)))
    (tmp_path / "animals.yaml").write_text(
        "task: animals\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: '{tmp_path / 'data.json'}'}}, cache_dir: '{tmp_path / 'cache'}'}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: a\ntarget_delimiter: ''\nmetric_list: [{metric: acc}]\n"
    )
    given = [str(made / "run" / "model"), "--tasks", str(tmp_path / "animals.yaml"), "--limit", "2"]
    found = figures(capsys, *given)
    assert found["tasks"]["animals"]["acc,none"] in (0.0, 1.0)
    assert main(["eval", *given, "--device", "cpu"]) == 0
    assert "|animals|" in capsys.readouterr().out
