"""`pretrain`, `finetune` and `demo`: files, output, errors."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama.cli import main
from bpe_llama.model import LlamaForCausalLM, lora, training
from bpe_llama.model.cli import demo
from bpe_llama.model.cli import finetune as finetune_command
from bpe_llama.model.cli import pretrain as pretrain_command
from bpe_llama.model.cli.loading import load_generator
from bpe_llama.model.cli.options.training import FIELDS_WITHOUT_FLAG, TRAINING_FLAGS
from tests.unit.model_commands.helpers import finetune, pretrain


@pytest.mark.parametrize(
    ("command", "without"),
    [
        (pretrain_command, {"eval_fraction"}),
        (finetune_command, {"max_seconds", "compile", "packing", "document_mask"}),
    ],
)
def test_each_training_option_has_a_flag_or_is_listed_as_having_none(command: Any, without: set[str]) -> None:
    fields = {field.name for field in dataclasses.fields(training.TrainConfig)}
    assert len(fields) == len(TRAINING_FLAGS) + len(FIELDS_WITHOUT_FLAG)
    assert fields == TRAINING_FLAGS.keys() | set(FIELDS_WITHOUT_FLAG)
    parameters = inspect.signature(command.command).parameters.keys()
    assert parameters & fields == TRAINING_FLAGS.keys() - without


def test_each_option_of_the_data_has_a_flag() -> None:
    fields = {field.name for field in dataclasses.fields(training.DataConfig)}
    assert fields <= inspect.signature(finetune_command.command).parameters.keys()


def test_threads_are_those_asked_for_during_the_command_alone(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(training, "train", lambda *_, **__: seen.append(torch.get_num_threads()) or sys.exit(0))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for asked in (["--threads", "3"], []):
        with pytest.raises(SystemExit):
            main(pretrain(made, made / "threads", *asked))
    assert seen == [3, 1] and torch.get_num_threads() == 1


def test_workers_of_openmp_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert main(["demo", "--help"]) == 0
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["THP_MEM_ALLOC_ENABLE"]) == ("passive", "0")
    code = "import os, bpe_llama.model; print(os.environ.get('OMP_WAIT_POLICY'))"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.split() == ["None"]  # the library leaves it alone


def test_pretrain_saves_a_model_with_its_tokenizer(made: Path) -> None:
    folder = made / "run" / "model"
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in folder.iterdir()} == expected
    config = json.loads((folder / "config.json").read_text())
    assert (config["vocab_size"], config["hidden_size"], config["eos_token_id"]) == (280, 32, 279)
    assert LlamaForCausalLM.from_pretrained(folder, device="cpu").config.num_hidden_layers == 1
    assert (made / "run" / "loss.png").stat().st_size > 1000


@pytest.mark.parametrize(("named", "ends"), [({}, 279), ({"eos_token_id": 5}, 5), ({"eos_token_id": None}, None)])
def test_a_config_without_an_end_has_the_tokenizers(
    made: Path, tmp_path: Path, named: dict[str, Any], ends: int | None
) -> None:
    values = json.loads((made / "run" / "model" / "config.json").read_text())
    kept = {name: value for name, value in values.items() if name not in ("bos_token_id", "eos_token_id")}
    (tmp_path / "config.json").write_text(json.dumps(kept | named))
    config = ["--config", str(tmp_path / "config.json")]
    assert main(pretrain(made, tmp_path / "run", *config, shape=())) == 0
    saved = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert (saved.get("eos_token_id"), saved.get("bos_token_id")) == (ends, None)


def test_pretrain_resumes_and_refuses_to_overwrite(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(pretrain(made, made / "run")) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main(pretrain(made, made / "run", "--resume", "--steps", "6")) == 0
    assert "step 6:" in capsys.readouterr().out


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_json_of_a_run(made: Path, tmp_path: Path, quiet: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("some notes " * 200)
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    assert main(pretrain(made, run, "--json", *quiet)) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["model"], result["interrupted"]) == (str(run / "model"), False)
    assert result["step"] > 0 and result["loss"] > 0 and Path(result["checkpoint"]).is_dir()
    options = ["--steps", "1", "--sequence-length", "16", "--json", *quiet]
    assert main(["finetune", str(tmp_path / "notes.txt"), "-m", str(run / "model"), "-o", str(tuned), *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["adapter"], result["model"], result["step"]) == (str(tuned / "adapter"), None, 1)


def test_resume_without_a_checkpoint_says_so(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "train", lambda *_, **__: sys.exit(0))
    with pytest.raises(SystemExit):
        main(pretrain(made, tmp_path / "run", "--resume"))
    assert f"--resume: {tmp_path / 'run'} holds no checkpoint; the run starts at step 0" in capsys.readouterr().err


def test_pretrain_mixes_corpora_and_packs_documents(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = np.load(made / "tokens.npy")
    ends = np.arange(9, len(ids), 10)
    ids[ends] = 279  # <|endoftext|>
    np.save(tmp_path / "a.npy", ids[: len(ids) // 2])
    np.save(tmp_path / "b.npy", ids[len(ids) // 2 :])
    data, more = [str(tmp_path / name) for name in ("a.npy", "b.npy")], pretrain(made, tmp_path / "run")[2:]
    packed = ["--packing", "best_fit", "--weight", "3", "--weight", "1"]
    assert main(["pretrain", *data, *more, *packed]) == 0
    metrics = training.read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert metrics[f"epochs/{data[0]}"] > metrics[f"epochs/{data[1]}"] > 0
    for wrong, message in (
        ([*data, *more, "--weight", "3"], "1 --weight for 2 DATA"),
        ([data[0], data[0], *more], "given twice"),
        ([*data, *more, "--weight", "1", "--weight", "0"], "b.npy is 0.0, expected a positive number"),
    ):
        assert main(["pretrain", *wrong]) == 2
        assert message in capsys.readouterr().err


# peft asks transformers by a name that transformers has since changed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_finetune_saves_an_adapter_that_generate_and_peft_load(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    assert main(finetune(made, out, "--rank", "2", "--merge")) == 0
    assert "step 6:" in capsys.readouterr().out
    assert {path.name for path in (out / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(made / "run" / "model")
    said = []
    for model in (
        ["--model", str(made / "run" / "model"), "--adapter", str(out / "adapter")],
        ["-m", str(out / "model")],
    ):
        assert main(["generate", "The quick", *model, "-n", "12", "--device", "cpu", "--seed", "0"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    base = ["--model", str(made / "run" / "model")]
    assert main(["generate", "The quick", *base, "-n", "12", "--device", "cpu", "--seed", "0"]) == 0
    assert capsys.readouterr().out != said[0]
    peft = pytest.importorskip("peft", reason="whether peft loads the adapter needs peft installed")
    transformers = pytest.importorskip("transformers", reason="whether peft loads the adapter needs transformers")
    transformers.utils.logging.disable_progress_bar()
    base = transformers.LlamaForCausalLM.from_pretrained(made / "run" / "model")
    theirs = peft.PeftModel.from_pretrained(base, out / "adapter").eval()
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        ours = LlamaForCausalLM.from_pretrained(out / "model", device="cpu")(ids).logits
        torch.testing.assert_close(ours, theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_finetune_trains_dora_and_rslora_adapters(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, base = tmp_path / "tuned", made / "run" / "model"
    kinds = ["--dora", "--rslora", "--target", "all-linear", "--save-module", "norm", "--dropout", "0.1"]
    assert main(finetune(made, out, *kinds)) == 0
    assert main(finetune(made, out, *kinds, "--resume", "--steps", "7")) == 0
    assert "step 7:" in capsys.readouterr().out
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["use_dora"] and config["use_rslora"] and config["modules_to_save"] == ["norm"]
    peft = pytest.importorskip("peft", reason="whether peft loads the adapter needs peft installed")
    transformers = pytest.importorskip("transformers", reason="whether peft loads the adapter needs transformers")
    transformers.utils.logging.disable_progress_bar()
    theirs = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM.from_pretrained(base), out / "adapter").eval()
    generator = load_generator(base, None, "float32", "cpu", out / "adapter")
    assert lora.names(generator.model) == []  # merged
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(generator.model(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)
    file = out / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(config | {"alora_invocation_tokens": [1]}))
    assert main(["generate", "x", "--model", str(base), "--adapter", str(out / "adapter"), "--device", "cpu"]) == 2
    assert f"{file}: alora_invocation_tokens is [1], which is not supported" in capsys.readouterr().err


def test_finetune_resumes_and_refuses_to_overwrite(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    assert main(finetune(made, out, "--quantize", "int8", "--checkpoint-activations")) == 0
    assert main(finetune(made, out, "--quantize", "int8")) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main(finetune(made, out, "--quantize", "int8", "--resume", "--steps", "8")) == 0
    assert "step 8:" in capsys.readouterr().out


@pytest.mark.parametrize("targets", [["q_proj", "foo"], ["all-linear", "q_proj"], ["q_proj", "roj"]])
def test_finetune_refuses_a_target_that_would_not_be_trained(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], targets: list[str]
) -> None:
    arguments = [word for name in targets for word in ("--target", name)]
    assert main(finetune(made, tmp_path / "tuned", *arguments)) == 2
    wrong = next(name for name in targets if name != "q_proj")
    assert f"--target is '{wrong}'; expected all-linear alone, or some of " in capsys.readouterr().err


def test_errors_are_one_line_before_any_work(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "a"}\n')
    model = made / "run" / "model"
    for arguments, message in (
        (["finetune", str(tmp_path / "a.jsonl"), "-m", str(model), "-o", str(tmp_path / "o")], "['question']"),
        (["generate", "a", "-m", str(model), "--top-p", "0", "--device", "cpu"], "top_p must be in (0, 1], got 0"),
        (["convert", str(model), str(tmp_path / "none" / "a.gguf")], f"{tmp_path / 'none' / 'a.gguf'}: No such file"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and message in said.err


def test_warnings_are_one_line(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run" / "model", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"stop_strings": ["a"]}')
    done = subprocess.run(
        [sys.executable, "-m", "bpe_llama.cli", "convert", tmp_path / "model", tmp_path / "a.gguf"],
        capture_output=True,
        text=True,
        check=True,
    )
    line = "bpe-llama: warning: a GGUF file has no place for these defaults of generation: stop_strings = ['a']\n"
    assert done.stderr.endswith(line)


def test_finetune_reads_rows_and_prints_what_is_learned(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"prompt": "The quick", "completion": " brown fox"}] * 8))
    arguments = finetune(made, tmp_path / "tuned", "--format", "prompt-completion", "--show-example")
    arguments[1] = str(rows)
    assert main(arguments) == 0
    assert re.search(r"The quick⟦ brown fox.*⟧", capsys.readouterr().err)
    for more, message in (
        (["--format", "csv"], "format is 'csv'; expected auto, messages, sharegpt, alpaca, prompt-completion, text"),
        (["--train-on", "none"], "train_on is 'none'; expected assistant, last, all"),
        (["--format", "alpaca"], "need a tokenizer with a chat template"),
    ):
        assert main([*arguments, *more, "--out", str(tmp_path / "other")]) == 2
        assert message in capsys.readouterr().err


def test_finetune_of_all_weights_may_stay_in_bfloat16(made: Path, tmp_path: Path) -> None:
    assert main(finetune(made, tmp_path / "tuned", "--full", "--weights-dtype", "bfloat16")) == 0
    stored = json.loads((tmp_path / "tuned" / "model" / "config.json").read_text())
    assert stored["dtype"] == "bfloat16"


def test_finetune_of_all_weights_saves_a_model(made: Path, tmp_path: Path) -> None:
    assert main(finetune(made, tmp_path / "tuned", "--full")) == 0
    assert not (tmp_path / "tuned" / "adapter").exists()
    before, after = (
        LlamaForCausalLM.from_pretrained(folder, device="cpu").state_dict()
        for folder in (made / "run" / "model", tmp_path / "tuned" / "model")
    )
    assert all(not torch.equal(after[name], weight) for name, weight in before.items())
    assert Tokenizer.from_file(tmp_path / "tuned" / "model").vocab_size == 280


GENERATE = ["generate", "x", "--model", "{run}"]
PRETRAIN = ["pretrain", "{tokens}", "--tokenizer", "{tok}", "--out", "o"]
FINETUNE = ["finetune", "words.txt", "--model", "{run}", "--out", "o"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--model", "absent"], "absent"),
        ([*GENERATE, "--temperature", "-1"], "temperature"),
        ([*GENERATE, "--top-p", "nonsense"], "--top-p"),
        ([*GENERATE, "--device", "tpu9"], "tpu9"),
        ([*GENERATE, "-n", "0"], "max_new_tokens"),
        (["generate", "", "--model", "{run}"], "empty"),
        ([*GENERATE, "--stop", ""], "a stop string is empty"),
        ([*GENERATE, "--ban", "9999"], "9999"),
        (["generate", "x" * 999, "--model", "{run}"], "context"),
        (["pretrain", "absent.npy", "--tokenizer", "{tok}", "--out", "o"], "absent.npy"),
        (["pretrain", "{tok}", "--tokenizer", "{tok}", "--out", "o"], "not a .npy file"),
        (["pretrain", "{tokens}", "--tokenizer", "{tok}", "--out", "o", "--heads", "3"], "num_attention_heads"),
        (["pretrain", "{tokens}", "--tokenizer", "{tok}"], "--out"),
        ([*PRETRAIN, "--layers", "0"], "num_hidden_layers"),
        ([*PRETRAIN, "--intermediate-size", "0"], "intermediate_size"),
        ([*PRETRAIN, "--start-from", "{run}", "--layers", "9"], "--layers is given beside --start-from"),
        ([*PRETRAIN, "--config", "{run}", "--no-tie"], "--tie is given beside --config, which has the model's shape"),
        ([*PRETRAIN, "--config", "{run}", "--start-from", "{run}"], "--start-from is given beside --config"),
        (["demo", "--seconds", "0"], "seconds is 0"),
        (["finetune", "absent.txt", "--model", "{run}", "--out", "o"], "absent.txt"),
        (["finetune", "words.txt", "--model", "absent", "--out", "o"], "absent"),
        (["finetune", "rows.jsonl", "--model", "{run}", "--out", "o"], "rows.jsonl, line 2: "),
        (["finetune", "talks.jsonl", "--model", "{run}", "--out", "o"], "talks.jsonl, line 2: "),
        (["finetune", "rows.csv", "--model", "{run}", "--out", "o"], "rows.csv: rows of .csv are not read"),
        (["finetune", "words.txt", "--model", "{run}"], "--out"),
        ([*FINETUNE, "--full", "--rank", "4"], "--rank is for an adapter"),
        ([*FINETUNE, "--full", "--dora"], "--dora is for an adapter"),
        ([*FINETUNE, "--save-module", "layers"], "names model.layers"),
        ([*FINETUNE, "--rank", "0"], "rank is 0"),
        ([*FINETUNE, "--weights-dtype", "bfloat16"], "it is for --full"),
        ([*FINETUNE, "--target", "nothing"], "--target is 'nothing'"),
        ([*FINETUNE, "--steps", "0"], "max_steps is 0"),
        ([*FINETUNE, "--quantize", "int2"], "expected int8 or int4"),
        ([*FINETUNE, "--quantize", "int8", "--merge"], "not both"),
        ([*GENERATE, "--adapter", "absent"], "absent"),
        ([*GENERATE, "--quantize", "float8_e4m3"], "expected int8 or int4"),
        ([*GENERATE, "--quantize", "int4", "--group-size", "64"], "a divisor of model.layers.0.self_attn.q_proj's 32"),
        (["chat", "--model", "{run}", "--quantize", "int2"], "expected int8 or int4"),
        ([*GENERATE, "--seed", "often"], "--seed is 'often'; expected a number, or random"),
        ([*GENERATE, "--xtc-probability", "2"], "xtc_probability is 2.0; expected 0 to 1"),
        ([*GENERATE, "--mirostat", "3"], "mirostat is 3; expected 0 (off), 1 or 2"),
        ([*GENERATE, "--filter-order", "top_k,heat"], "filter_order names 'heat'"),
        ([*GENERATE, "--n", "0"], "n is 0; expected at least 1"),
        ([*GENERATE, "--num-beams", "2", "--top-p", "0.5"], "top_p is 0.5, but a beam search"),
        ([*GENERATE, "--num-beams", "2", "--seed", "7"], "draws nothing unless do_sample is True; leave it out"),
        ([*GENERATE, "--num-beams", "2", "--speed"], "--speed is given with --num-beams 2"),
        (["chat", "--model", "{run}", "--penalty-scope", "all"], "penalty_scope"),
        (["generate", "x", "--model", "{run}", "--threads", "0"], "threads is 0; expected at least 1"),
    ],
)
def test_bad_usage_of_the_models_commands_is_one_line_and_exit_code_2(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("The quick brown fox. " * 100)
    (tmp_path / "rows.jsonl").write_text('{"text": "The quick"}\nbrown\n')
    (tmp_path / "talks.jsonl").write_text(
        '{"prompt": "The", "completion": "quick"}\n{"prompt": 1, "completion": "x"}\n'
    )
    (tmp_path / "rows.csv").write_text("text\nThe quick brown fox.\n" * 100)
    names = {"run": made / "run" / "model", "tok": made / "tokenizer.json", "tokens": made / "tokens.npy"}
    assert main([argument.format(**names) for argument in arguments]) == 2
    out, error = capsys.readouterr()
    assert message in error and out == ""
    assert error.count("\n") == 1 and "Traceback" not in error


def test_the_demo_trains_and_generates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = demo.corpus_files()[:40]
    monkeypatch.setattr(demo, "corpus_files", lambda: few)
    out = tmp_path / "demo-out"
    for _ in range(2):  # a second run replaces the first
        assert main(["demo", "--seconds", "0.5", "--out", str(out), "--device", "cpu"]) == 0
        said = capsys.readouterr().out
    expected = {"tokenizer.json", "tokenizer_config.json", "tokens.npy", "run", "model", "loss.png", "sample.py.txt"}
    assert {path.name for path in out.iterdir()} == expected
    assert "bytes per token" in said and "def " in said
    tokenizer = Tokenizer.from_file(out / "model")
    assert tokenizer.vocab_size == 4096
    parameters = sum(weight.numel() for weight in LlamaForCausalLM.from_pretrained(out / "model").parameters())
    assert 1_000_000 <= parameters <= 3_000_000
    for line in said[said.index("Next, try:") :].splitlines()[1:2]:
        assert main([word.strip("'") for word in line.replace("class Queue", "class_Queue").split()[1:]]) == 0


def test_a_demo_that_is_interrupted_at_once_says_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = demo.corpus_files()[:10]
    monkeypatch.setattr(demo, "corpus_files", lambda: few)
    monkeypatch.setattr(demo, "VOCAB_SIZE", 300)
    monkeypatch.setattr(training.loop.Trainer, "_stopped", lambda self, stop: True)
    assert main(["demo", "--seconds", "0.5", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 130
    assert "Stopped at step 0; the checkpoint is " in capsys.readouterr().out


def test_the_corpus_of_the_demo_is_this_pythons_library() -> None:
    files = demo.corpus_files()
    assert any(path.name == "argparse.py" for path in files)
    assert not any("site-packages" in path.parts for path in files)
    with pytest.raises(ValueError, match="no Python sources"):
        demo.corpus_files(Path(__file__).parent / "absent")
