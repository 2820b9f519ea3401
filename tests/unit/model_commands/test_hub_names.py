"""Commands take names on the Hugging Face Hub where they take paths, with the same results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bpe_llama.cli import main
from tests.hub_server import Hub, files_of
from tests.unit.model_commands.helpers import RUN, finetune

TOKENIZER = ["config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def adapter(made: Path) -> Path:
    assert main(finetune(made, made / "tuned")) == 0
    return made / "tuned" / "adapter"


def _printed(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    assert main(list(command)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["encode", "the lazy dog"],
        ["decode", "72", "73"],
        ["count", "the lazy dog"],
        ["inspect", "the lazy dog", "--ids"],
    ],
)
def test_tokenizer_commands(hub: Hub, made: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    hub.add("org/name", files_of(made / "run" / "model"))
    local, named = ([*command, "--tokenizer", name] for name in (str(made / "run" / "model"), "org/name"))
    assert _printed(capsys, *named) == _printed(capsys, *local)
    assert hub.fetched() == TOKENIZER


def test_compare_and_train_further(hub: Hub, made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    hub.add("org/name", files_of(made / "run" / "model"))
    (tmp_path / "text.txt").write_text("the lazy dog sleeps\n" * 99)
    shown = _printed(capsys, "compare", "org/name", str(made / "tokenizer.json"), "--text", str(tmp_path / "text.txt"))
    assert "bytes a token" in shown and " name " in shown
    out = str(tmp_path / "more.json")
    _printed(
        capsys, "train-tokenizer", str(tmp_path / "text.txt"), "--base", "org/name", "--vocab-size", "285", "--out", out
    )
    assert hub.fetched() == TOKENIZER


def test_generate_with_an_adapter(hub: Hub, made: Path, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.add("org/name", files_of(made / "run" / "model"))
    hub.add("org/adapter", files_of(adapter))
    common = ["generate", "The quick", "--device", "cpu", "--max-new-tokens", "8", "--temperature", "0"]
    for given in ([], ["--adapter"]):
        local = [*common, "--model", str(made / "run" / "model"), *given, *([str(adapter)] if given else [])]
        named = [*common, "--model", "org/name", *given, *(["org/adapter"] if given else [])]
        assert _printed(capsys, *named) == _printed(capsys, *local)
    assert hub.fetched() == sorted(
        [*TOKENIZER, "model.safetensors", "adapter_config.json", "adapter_model.safetensors"]
    )


def test_eval_and_convert(hub: Hub, made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    repo = hub.add("org/name", files_of(made / "run" / "model"))
    repo.commit(files_of(made / "run" / "model"), "v1")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 9)
    evaluate = ["--text", str(tmp_path / "text.txt"), "--device", "cpu", "--json"]
    local = json.loads(_printed(capsys, "eval", str(made / "run" / "model"), *evaluate))
    assert json.loads(_printed(capsys, "eval", "org/name@v1", *evaluate)) == local
    _printed(capsys, "convert", "org/name", str(tmp_path / "mean"), "--average-with", "org/name@v1")
    assert files_of(tmp_path / "mean")["model.safetensors"] == files_of(made / "run" / "model")["model.safetensors"]


def test_training(hub: Hub, made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    hub.add("org/name", files_of(made / "run" / "model"))
    (tmp_path / "notes.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    run = ["--steps", "2", "--batch-size", "2", "--device", "cpu"]
    printed = _printed(
        capsys, "finetune", str(tmp_path / "notes.txt"), "--model", "org/name", "--out", str(tmp_path / "tuned"), *run
    )
    assert f"--model org/name --adapter {tmp_path / 'tuned' / 'adapter'}" in printed
    config = json.loads((tmp_path / "tuned" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/name"
    names = ["--tokenizer", "org/name", "--start-from", "org/name", "--teacher", "org/name"]
    _printed(capsys, "pretrain", str(made / "tokens.npy"), *names, "--out", str(tmp_path / "further"), *RUN)


def test_a_name_that_is_nothing(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["generate", "x", "--model"], ["encode", "x", "--tokenizer"], ["eval", "--text", __file__]):
        assert main([*command, "org/none"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"bpe-llama: org/none: no such file or folder here; {hub.endpoint} has no such"), error
        assert error.count("\n") == 1
