"""The tokenizer's commands: output, errors and exit codes."""

from __future__ import annotations

import importlib.metadata
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bpe_llama import Tokenizer, __version__, cli, display
from bpe_llama._core import simd_tier
from bpe_llama.cli import doctor

TOKENIZER_COMMANDS = ("train-tokenizer", "encode-corpus", "encode", "decode", "count", "inspect", "doctor")


@pytest.fixture(scope="module")
def saved(tok: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cli") / "tokenizer.json"
    tok.save(path)
    return str(path)


class _Stdin(io.TextIOWrapper):
    def __init__(self, content: bytes, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def _run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "bpe_llama.cli", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=300)


def test_help_lists_every_command_without_torch() -> None:
    script = (
        "import sys; from bpe_llama.cli import main; code = main(['--help']); "
        "sys.exit(code or ('torch' in sys.modules and 'torch was imported'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for command in (*TOKENIZER_COMMANDS, *cli.MODEL_COMMANDS):
        assert command in done.stdout


def test_every_listed_model_command_exists(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="needs bpe_llama[model]")
    from bpe_llama.model.cli import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert names == set(cli.MODEL_COMMANDS)
    for name in sorted(names):
        assert cli.main([name, "--help"]) == 0
        assert f"Example: bpe-llama {name}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", TOKENIZER_COMMANDS)
def test_each_help_holds_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"Example: bpe-llama {command}" in " ".join(capsys.readouterr().out.split())


def test_encode_and_decode_are_inverse(saved: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    text = "def naïve(x):\n\treturn 'ünï 😀'\n"
    assert cli.main(["encode", text, "--tokenizer", saved]) == 0
    ids = capsysbinary.readouterr().out.decode().split()
    assert list(map(int, ids)) == Tokenizer.from_file(saved).encode(text)
    assert cli.main(["decode", *ids, "--tokenizer", saved]) == 0
    assert capsysbinary.readouterr().out == text.encode()


def test_text_and_ids_from_standard_input(
    saved: str, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(sys, "stdin", _Stdin("line\r\nänd\n".encode()))
    assert cli.main(["encode", "-t", saved]) == 0
    ids = capsysbinary.readouterr().out
    monkeypatch.setattr(sys, "stdin", _Stdin(ids))
    assert cli.main(["decode", "-t", saved]) == 0
    assert capsysbinary.readouterr().out == "line\r\nänd\n".encode()


@pytest.mark.parametrize("text", ["", "a", "low ünï\n"])
def test_decode_reads_the_json_that_encode_prints(
    text: str, saved: str, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert cli.main(["encode", text, "-t", saved, "--json"]) == 0
    ids = capsysbinary.readouterr().out
    monkeypatch.setattr(sys, "stdin", _Stdin(ids))
    for given in ([], [ids.decode()]):
        assert cli.main(["decode", "-t", saved, *given]) == 0
        assert capsysbinary.readouterr().out == text.encode()


def test_encode_to_a_file(
    tok: Tokenizer, saved: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "text.txt").write_bytes(b"some text\n" * 100)
    out = tmp_path / "ids.npy"
    assert cli.main(["encode", "--file", str(tmp_path / "text.txt"), "-t", saved, "--out", str(out), "--eos"]) == 0
    ids = np.load(out)
    assert ids.dtype == np.uint16
    assert ids.tolist() == tok.encode("some text\n" * 100, eos=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.npy", "text.txt"]
    capsysbinary.readouterr()
    assert cli.main(["decode", "--file", str(out), "-t", saved]) == 0
    assert capsysbinary.readouterr().out == b"some text\n" * 100 + b"<|end_of_text|>"
    assert cli.main(["decode", "--file", str(out.rename(tmp_path / "IDS.NPY")), "-t", saved]) == 0
    assert capsysbinary.readouterr().out.startswith(b"some text\n")
    assert cli.main(["encode", "x", "-t", saved, "--out", str(tmp_path / "ids.txt")]) == 2  # decode reads it as text
    assert b"out must end in .npy" in capsysbinary.readouterr().err


def test_special_tokens_are_text_unless_allowed(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["encode", "<|end_of_text|>", "-t", saved]) == 0
    assert len(capsys.readouterr().out.split()) > 1
    assert cli.main(["encode", "<|end_of_text|>", "-t", saved, "--allow-special"]) == 0
    assert capsys.readouterr().out.split() == ["999"]


def test_count(tok: Tokenizer, saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["count", "some text", "-t", saved]) == 0
    assert capsys.readouterr().out == f"{tok.count('some text')}\n"
    for name in ("a", "b"):
        (tmp_path / name).write_text(name * 9, encoding="utf-8")
    assert cli.main(["count", "-f", str(tmp_path / "a"), "-f", str(tmp_path / "b"), "-t", saved]) == 0
    *rows, total = (line.split() for line in capsys.readouterr().out.splitlines())
    assert [int(row[0]) for row in rows] == [tok.count("a" * 9), tok.count("b" * 9)]
    assert total == [str(sum(int(row[0]) for row in rows)), "total"]


def test_doctor_describes_this_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BPE_LLAMA_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    (tmp_path / "file").write_bytes(bytes(2_000_000))
    assert cli.main(["doctor"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line[0] != " ")
    assert lines["bpe-llama"] == __version__ and lines["instructions"].startswith(simd_tier())
    assert "model (installed)" in lines["extras"] and lines["torch"].startswith(importlib.metadata.version("torch"))
    assert f"{tmp_path}: 2.0 MB" in lines["caches"]
    assert "native kernels" in lines["CPU"] and lines["CUDA"].startswith(("none: torch", "1"))
    assert cli.main(["doctor", "--no-torch", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "torch" not in found and found["extras"]["model"] == "installed"
    assert found["caches"][str(tmp_path)] == 2_000_000 and found["caches"][str(tmp_path / "none")] is None


def test_doctor_knows_all_extras() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = {
        extra: {re.split(r"[^\w-]", requirement)[0] for requirement in requirements} - {"bpe-llama"}
        for extra, requirements in project["optional-dependencies"].items()
        if extra not in ("all", "dev", "bench", "docs")  # a list of others; for its developers
    }
    assert {extra: set(packages) for extra, packages in doctor._EXTRAS.items()} == declared


def test_inspect_shows_pieces_ids_and_the_vocabulary(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "def f[x]:\n  0", "-t", saved]) == 0
    out = capsys.readouterr().out
    assert "def f[x]:↵\n  0" in out, "text in brackets is not read as markup"
    assert "bytes a token" in out
    assert cli.main(["inspect", "def f", "-t", saved, "--ids"]) == 0
    assert "64 65 66" in capsys.readouterr().out
    assert cli.main(["inspect", "-t", saved, "--vocabulary"]) == 0
    assert "<|end_of_text|> = 999" in capsys.readouterr().out


def test_train_tokenizer(corpus: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_bytes(corpus[0].encode())
    (tmp_path / "b.txt").write_bytes(corpus[1].encode())
    out = tmp_path / "tokenizer.json"
    options = ["--vocab-size", "400", "--special", "<|end|>", "--special", "<|pad|>", "--pattern", "llama3"]
    assert cli.main(["train-tokenizer", str(tmp_path / "*.txt"), *options, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "400 tokens in" in printed and "peak memory" in printed
    assert "bytes a token" in printed and "cut characters" in printed and "a.txt" in printed
    assert cli.main(["train-tokenizer", str(tmp_path), *options, "--out", str(tmp_path / "2.json"), "--no-report"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    expected = Tokenizer.train_from_iterator(
        corpus[:2], vocab_size=400, special_tokens=["<|end|>", "<|pad|>"], pattern="llama3"
    )
    trained = Tokenizer.from_file(out)
    assert trained.merges == expected.merges
    assert trained.special_tokens == {"<|end|>": 398, "<|pad|>": 399}


def test_a_tokenizer_is_overwritten_only_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("low lower")
    command = ["train-tokenizer", "a.txt", "--vocab-size", "260", "--quiet"]
    assert cli.main(command) == 0
    before = Path("tokenizer.json").read_bytes()
    assert cli.main([*command, "--special", "<s>"]) == 2
    assert Path("tokenizer.json").read_bytes() == before
    assert cli.main([*command, "--special", "<s>", "--out", "tokenizer.json"]) == 0
    assert Path("tokenizer.json").read_bytes() != before
    assert cli.main([*command, "--out", "new/folder/tokenizer.json"]) == 0
    assert Path("new/folder/tokenizer.json").read_bytes() == before


def test_a_corpus_without_text_is_said(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").touch()
    command = ["encode-corpus", str(tmp_path / "a.txt"), "-t", saved, "-o", str(tmp_path / "shards"), "--no-eos"]
    with pytest.warns(UserWarning, match="shards: the corpus holds no text"):
        assert cli.main(command) == 0
    assert "0 tokens in" in capsys.readouterr().out


def test_encode_corpus(tok: Tokenizer, saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("one|two words", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"body": "three"}\n', encoding="utf-8")
    out = tmp_path / "shards"
    command = ["encode-corpus", str(tmp_path / "*.*"), "-t", saved, "-o", str(out), "--field", "body"]
    options = ["--separator", "|", "--bos", "--no-eos", "--shard-tokens", "2", "--threads", "2"]
    for _run in range(2):  # the second finds the folder complete
        assert cli.main([*command, *options]) == 0
        documents = [tok.encode(text, bos=True) for text in ("one", "two words", "three")]
        tokens = sum(map(len, documents))
        printed = capsys.readouterr().out
        assert f"shards: {tokens} tokens in" in printed and "3 documents in 3 shards" in printed
        assert [np.load(out / f"shard-0000{number}.npy").tolist() for number in range(3)] == documents
    assert cli.main([*command, "--separator", "||", *options[2:]]) == 2
    assert "separator is '||', but was '|'" in capsys.readouterr().err


def test_counting_on_ray_needs_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    assert cli.main(["train-tokenizer", str(tmp_path), "--ray", "local", "-o", str(tmp_path / "t.json")]) == 2
    assert capsys.readouterr().err == "bpe-llama: bpe_llama.scale needs Ray: pip install 'bpe_llama[scale]'\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["no-such-command"], "no-such-command"),
        (["encode", "--no-such-option"], "--no-such-option"),
        (["train-tokenizer"], "corpus"),
        (["train-tokenizer", "missing.txt", "--vocab-size", "many"], "--vocab-size"),
        (["train-tokenizer", "missing.txt", "--vocab-size", "8e3"], "expected a whole number, got '8e3'; write 8000"),
        (["train-tokenizer", "missing.txt", "--threads", "2.5"], "expected a whole number, got '2.5'\n"),
        (["train-tokenizer", "missing.txt"], "missing.txt: no such file or folder"),
        (["train-tokenizer", "none/*.txt"], "none/*.txt: no file matches this pattern"),
        (["train-tokenizer", "empty"], "empty: the folder holds no files"),
        (["train-tokenizer", "image.png"], "image.png: invalid UTF-8 at byte 0. It holds zero bytes, as binary files"),
        (["train-tokenizer", "latin1.txt", "--ray", "auto", "--threads", "2"], "not both"),
        (["encode-corpus", "latin1.txt"], "--out"),
        (["encode-corpus", "-t", "SAVED", "--out", "shards"], "no paths were given"),
        (["encode-corpus", "latin1.txt", "-t", "SAVED", "--out", "shards"], "latin1.txt: invalid UTF-8 at byte 3"),
        (
            ["encode-corpus", "latin1.txt", "-t", "SAVED", "--out", "shards", "--split", "dev"],
            "--split needs --dataset",
        ),
        (["encode-corpus", "latin1.txt", "-t", "SAVED", "--out", "shards", "--shard-tokens", "0"], "shard_tokens is 0"),
        (["encode-corpus", "latin1.txt", "--out", "shards", "--ray", "auto", "--threads", "2"], "not both"),
        (["encode-corpus", "--out", "shards", "--ray", "auto", "--dataset", "name"], "not both"),
        (["train-tokenizer", "latin1.txt", "--ray="], "the address of the Ray cluster is ''; expected auto, local or"),
        (["encode-corpus", "latin1.txt", "-t", "SAVED", "--out", "shards", "--ray="], "Ray cluster is ''; expected"),
        (["encode", "text", "-t", "missing.json"], "missing.json"),
        (["encode", "text", "--file", "text.txt", "-t", "SAVED"], "not both"),
        (["encode", "--file", "missing.txt", "-t", "SAVED"], "missing.txt"),
        (["encode", "--file", "latin1.txt", "-t", "SAVED"], "byte 3 is not valid UTF-8"),
        *(([command, "caf\udce9", "-t", "SAVED"], "a lone surrogate") for command in ("encode", "count", "inspect")),
        (["encode", "text", "-t", "latin1.txt"], "latin1.txt"),
        (["encode", "text", "-t", "SAVED", "--out", "missing/ids.npy"], "missing"),
        (["decode", "12", "1000", "-t", "SAVED"], "1000"),
        (["decode", "-t", "SAVED", "--", "-1"], "-1"),
        (["decode", "twelve", "-t", "SAVED"], "twelve"),
        (["decode", "[12,,12]", "-t", "SAVED"], "[12,,12]"),
        (["decode", '["12"]', "-t", "SAVED"], '"12"'),
        (["decode", "--file", "latin1.txt", "-t", "SAVED"], "whole numbers"),
        (["decode", "--file", "floats.npy", "-t", "SAVED"], "floats.npy"),
        (["count", "--file", "missing.txt", "-t", "SAVED"], "missing.txt"),
        (["inspect", "-t", "SAVED"], "no text"),
        (["inspect", "-t", "SAVED", "--port", "many"], "'many'"),
        (["inspect", "text", "-t", "SAVED", "--vocabulary"], "--vocabulary takes no text, --file or --ids"),
        (["generate", "text", "--max-new-tokens", "many"], "'many'"),
        (["generate", "text", "--ban", "1", "--ban", "many"], "'many'"),
        (["pretrain", "ids.npy", "-t", "SAVED", "-o", "run", "--learning-rate", "fast"], "'fast'"),
        (["pretrain", "latin1.txt", "-t", "SAVED", "-o", "run"], "not a .npy file; `bpe-llama encode-corpus` makes"),
        (["eval", "--model", "run"], "No such option: --model; write the model itself, without --model"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    arguments: list[str],
    complaint: str,
    saved: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", _Stdin(b"", terminal=True))
    Path("latin1.txt").write_bytes("caf\u00e9".encode("latin-1"))
    Path("image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    Path("empty").mkdir()
    np.save("floats.npy", np.zeros(3))
    assert cli.main([saved if argument == "SAVED" else argument for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("bpe-llama: ") and captured.err.count("\n") == 1
    assert complaint.lower() in captured.err.lower()


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    out, error = capsys.readouterr()
    assert out.startswith("Usage: bpe-llama") and "\n  train-tokenizer " in out and error == ""


def test_a_process_exits_with_the_code_and_no_traceback() -> None:
    done = _run("encode", "text", "--tokenizer", "missing.json")
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1 and b"missing.json" in done.stderr and b"Traceback" not in done.stderr


def test_no_thread_is_one_line(saved: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("typer.echo", refuse)
    assert cli.main(["encode", "a", "--tokenizer", saved]) == 2
    assert capsys.readouterr().err.startswith("bpe-llama: no thread can be started; allow more processes")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_exits_with_130(saved: str) -> None:
    script = "import sys; from bpe_llama.cli import main; print('ready', flush=True); sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "count", "-t", saved]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        assert child.stdin is not None
        child.stdin.write(b"a" * (1 << 20))  # more than a pipe holds: it has loaded the tokenizer and reads on
        child.stdin.flush()
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=300)
    assert child.returncode == 130
    assert err == b"bpe-llama: interrupted\n"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes close differently on Windows")
def test_a_closed_output_pipe_is_no_error(saved: str, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("some text " * 200_000, encoding="utf-8")
    command = [sys.executable, "-m", "bpe_llama.cli", "encode", "--file", str(tmp_path / "long.txt"), "-t", saved]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        os.read(child.stdout.fileno(), 10)
        child.stdout.close()
        err = child.stderr.read()
        child.wait(timeout=300)
    assert err == b""


def test_coloured_tokens_join_to_their_text(tok: Tokenizer) -> None:
    tokens = tok.tokenize("a [bold]b[/bold] c\x00")
    text = display.coloured_tokens(tokens)
    assert text.plain.replace("\\x00", "\x00") == "a [bold]b[/bold] c\x00"
    styles = [str(span.style) for span in text.spans]
    assert all(a != b for a, b in itertools.pairwise(styles))


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell closes streams")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_traceback_and_no_part_of_a_file(tmp_path: Path, closed: str) -> None:
    """A file that is opened next would take its number, and get what is printed."""
    text, out = tmp_path / "text.txt", tmp_path / "vocabulary.json"
    text.write_text("low lower lowest")
    command = [
        sys.executable,
        "-m",
        "bpe_llama",
        "train-tokenizer",
        str(text),
        "--vocab-size",
        "258",
        "--out",
        str(out),
    ]
    for arguments in (command, [*command[:3], "compare", str(out), "--text", str(text)]):
        script = f'exec "$@" {closed}'
        done = subprocess.run(["sh", "-c", script, "sh", *arguments], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert Tokenizer.from_file(out).vocab_size == 258
