"""How the commands print: JSON, nothing with --quiet, colours and bars on terminals alone, and shell completion."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bpe_llama import Tokenizer, cli
from bpe_llama._progress import reporting

terminals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")


@pytest.fixture(scope="module")
def saved(tok: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cli") / "tokenizer.json"
    tok.save(path)
    return str(path)


def _on_terminal(*arguments: str, **environment: str) -> str:
    """Return what a command prints on a terminal of 200 columns."""
    import pty

    child, terminal = pty.fork()
    if child == 0:
        settings = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        settings |= {"TERM": "xterm-256color", "COLUMNS": "200", **environment}
        os.execve(sys.executable, [sys.executable, "-m", "bpe_llama.cli", *arguments], settings)
    shown = b""
    try:
        while found := os.read(terminal, 4096):
            shown += found
    except OSError:  # the other end is closed
        pass
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, shown
    return shown.decode()


def test_json(tok: Tokenizer, saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> object:
        assert cli.main([*arguments, "-t", saved, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    text = "naïve 😀"
    ids = tok.encode(text)
    assert said("encode", text) == ids
    assert said("count", text) == {"tokens": len(ids)}
    files = [str(tmp_path / name) for name in ("a", "b")]
    for file in files:
        Path(file).write_text(text, encoding="utf-8")
    assert said("count", "-f", files[0], "-f", files[1]) == {
        "tokens": 2 * len(ids),
        "files": dict.fromkeys(files, len(ids)),
    }
    found = said("inspect", text)
    assert isinstance(found, dict) and (found["characters"], found["bytes"]) == (len(text), len(text.encode()))
    assert [token["id"] for token in found["tokens"]] == ids
    assert bytes.fromhex("".join(token["bytes"] for token in found["tokens"])) == text.encode()
    described = said("inspect", "--vocabulary")
    assert isinstance(described, dict) and described["vocab_size"] == tok.vocab_size
    assert described["special_tokens"] == tok.special_tokens and described["end_ids"] == sorted(tok.end_ids)
    assert cli.main(["encode", text, "-t", saved, "--json", "--out", str(tmp_path / "x.npy")]) == 2
    assert "give --json or --out, not both" in capsys.readouterr().err


def test_json_of_training_and_encoding_a_corpus(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, out, shards = tmp_path / "a.txt", tmp_path / "t.json", tmp_path / "shards"
    corpus.write_text("some text to train on, é " * 50, encoding="utf-8")
    train = ["train-tokenizer", str(corpus), "--vocab-size", "270", "--out", str(out), "--json"]
    assert cli.main(train) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("seconds") > 0
    assert found.pop("peak_memory_bytes") != 0
    assert found == {"out": str(out), "vocab_size": 270}
    assert cli.main([*train, "--report"]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert report["rows"][-1]["num_bytes"] == corpus.stat().st_size and all(report["longest"])
    assert cli.main(["encode-corpus", str(corpus), "-t", saved, "--out", str(shards), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("seconds") >= 0 and found.pop("tokens") > 0
    assert found == {"out": str(shards), "documents": 1, "bytes": corpus.stat().st_size, "shards": 1}


def test_training_reads_fields_and_documents_as_encode_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, text, out = tmp_path / "a.jsonl", tmp_path / "a.txt", tmp_path / "t.json"
    rows.write_text(json.dumps({"body": "ab ab ab"}), encoding="utf-8")
    text.write_text("aa|ab|ab", encoding="utf-8")
    train = ["train-tokenizer", "--vocab-size", "257", "--out", str(out), "--report", "--json"]
    assert cli.main([*train, str(rows)]) == 2
    assert "text" in capsys.readouterr().err
    assert cli.main([*train, str(rows), "--field", "body"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["rows"][-1]["num_bytes"] == 8
    assert Tokenizer.from_file(out).id_to_bytes(256) == b"ab"
    assert cli.main([*train, str(text), "--separator", "|", "--pattern", "(?s:.+)"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["rows"][-1]["num_bytes"] == 6
    assert Tokenizer.from_file(out).id_to_bytes(256) == b"ab"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--pattern", r"\R|.", "--out", "t.json"], r"pattern .* cannot be saved"),
        (["--out", "t.model"], "cannot be saved as .model"),
    ],
)
def test_what_cannot_be_saved_is_not_trained(
    options: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("some text", encoding="utf-8")
    monkeypatch.setattr(Tokenizer, "train", lambda *_, **__: pytest.fail("the corpus is read"))
    assert cli.main(["train-tokenizer", "a.txt", "--vocab-size", "260", *options]) == 2
    assert re.search(error, capsys.readouterr().err)
    assert os.listdir() == ["a.txt"]


def test_quiet_prints_results_alone(
    saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    (tmp_path / "a.txt").write_text("some text to train on " * 50, encoding="utf-8")
    for command in (
        ["train-tokenizer", str(tmp_path / "a.txt"), "--vocab-size", "270", "--out", str(tmp_path / "t.json")],
        ["encode-corpus", str(tmp_path / "a.txt"), "-t", saved, "--out", str(tmp_path / "shards")],
        ["encode", "text", "-t", saved, "--out", str(tmp_path / "ids.npy")],
    ):
        assert cli.main([*command, "--quiet"]) == 0
        assert capsys.readouterr() == ("", "")
    assert cli.main(["count", "text", "-t", saved, "-q"]) == 0
    assert capsys.readouterr().out.strip().isdecimal()
    assert cli.main(["count", "text", "-t", "missing.json", "-q"]) == 2
    assert "missing.json" in capsys.readouterr().err


@terminals
def test_colours_are_for_terminals_that_want_them(saved: str) -> None:
    command = ["inspect", "two words", "-t", saved]
    assert "\x1b[" in _on_terminal(*command)
    shown = _on_terminal(*command, NO_COLOR="1")
    assert ";5;" not in shown and "48;" not in shown and "two words" in shown
    piped = subprocess.run([sys.executable, "-m", "bpe_llama.cli", *command], capture_output=True, timeout=300)
    assert piped.returncode == 0 and b"\x1b" not in piped.stdout


def test_bars_show_amount_rate_and_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    with reporting(None) as report:
        assert report is not None
        for done in range(0, 11, 5):
            for stage in ("count", "merge", "average"):
                report(stage, done, 10)
    lines = capsys.readouterr().err.splitlines()
    for label, parts in (
        ("counting words", ("bytes", "/s", "0:00:00")),
        ("merging pairs", ("10/10", "/s", "0:00:00")),
        ("averaging", ("10/10",)),
    ):
        assert all(part in [line for line in lines if label in line][-1] for part in parts)


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["encod", "x"], "'encode'"),
        (["encode", "--tokeniser", "x"], "--tokenizer"),
        (["train-tokenizer", "x", "--vocabsize", "300"], "--vocab-size"),
        (["train-tokenizer", "x", "--chat-template", "chatmll"], "chatml?"),
    ],
)
def test_errors_suggest_the_nearest_name(
    arguments: list[str], nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert nearest in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "completed"),
    [("bpe-llama enc", ["encode-corpus", "encode"]), ("bpe-llama encode --tok", ["--tokenizer"])],
)
def test_the_shell_completes_commands_and_options(line: str, completed: list[str]) -> None:
    settings = {"_BPE_LLAMA_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "bpe_llama.cli"], capture_output=True, text=True, timeout=300, env=os.environ | settings
    )
    assert (done.stdout.split(), done.stderr) == (completed, "")


def test_the_shell_completes_options_of_the_models_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="needs bpe_llama[model]")
    from bpe_llama.cli import model_commands

    monkeypatch.setenv("BPE_LLAMA_CACHE", str(tmp_path))
    found = {name for each in model_commands.parameters_of("generate") for name in each.opts}
    assert {"--temperature", "--json", "--quiet", "--model", "-m"} <= found
    kept = (tmp_path / "options.json").read_text()
    monkeypatch.setattr(model_commands, "read_options", lambda: pytest.fail("torch is imported again"))
    assert {name for each in model_commands.parameters_of("generate") for name in each.opts} == found
    assert json.loads(kept)["options"].keys() == cli.MODEL_COMMANDS.keys()


def test_compare_reads_the_files_that_training_reads(
    saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"body": "one row"}\n{"body": "another"}\n')
    (tmp_path / "plain.txt").write_text("one row\nanother", encoding="utf-8")
    assert cli.main(["compare", saved, "--text", str(tmp_path), "--field", "body", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    plain, rows = (of_text for of_text in figures if of_text["text"] != "total")
    assert plain["tokens"] == rows["tokens"] > 0 and plain["num_bytes"] == rows["num_bytes"]


@pytest.mark.parametrize(("special", "noted"), [("<|end|>", True), ("<|endoftext|>", False)])
def test_encode_corpus_says_that_nothing_separates_documents(
    special: str, noted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer.train_from_iterator(["ab"], 257, special_tokens=[special], progress=False)
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "a.txt").write_text("ab|ab", encoding="utf-8")
    command = ["encode-corpus", str(tmp_path / "a.txt"), "-t", str(tmp_path), "--out", str(tmp_path / "shards")]
    assert cli.main([*command, "--separator", "|"]) == 0
    assert ("no eos token" in capsys.readouterr().err) is noted
