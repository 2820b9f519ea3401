"""What a system refuses a command: open files, sizes and names of files, reads of a broken disk, its current folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bpe_llama import Tokenizer
from bpe_llama._files import read_text
from bpe_llama._files.arrays import open_array
from bpe_llama.cli import main

unix = pytest.mark.skipif(sys.platform == "win32", reason="limits and removed folders of Unix")


@pytest.fixture
def tok(tmp_path: Path) -> Tokenizer:
    tok = Tokenizer.train_from_iterator(["abab"] * 9, 258, progress=False)
    tok.save(tmp_path / "tokenizer.json")
    (tmp_path / "a.txt").write_text("abab")
    return tok


def python(script: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@unix
@pytest.mark.usefixtures("tok")
def test_without_open_files_no_temporary_folder_stays(tmp_path: Path) -> None:
    script = """
import os, resource
from bpe_llama import Tokenizer
tok = Tokenizer.from_file("tokenizer.json")
tok.save("tokenizer.json")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
opened = []
while len(opened) < 99:
    try: opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError: break
for _ in range(2):
    try: tok.save("tokenizer.json")
    except OSError as error: print(error)
    os.close(opened.pop())
os.close(opened.pop())
print(sorted(os.listdir()))
"""
    error = "[Errno 24] Too many open files: 'tokenizer.json'\n"
    assert python(script, tmp_path) == f"{2 * error}['a.txt', 'tokenizer.json', 'tokenizer_config.json']\n"


COMMAND = "import sys, bpe_llama.cli; sys.exit(bpe_llama.cli.main({}))"


@unix
@pytest.mark.usefixtures("tok")
@pytest.mark.parametrize("out", ["shards", "ids.npy"])
def test_files_that_may_hold_nothing(out: str, tmp_path: Path) -> None:
    command = ["encode-corpus", "a.txt", "-o", out] if out == "shards" else ["encode", "abab", "-o", out]
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
    named = "shards/sources.json" if out == "shards" else out
    assert python(limit + COMMAND.format(command), tmp_path) == f"bpe-llama: {named}: File too large\n"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file of Linux whose first byte cannot be read")
@pytest.mark.parametrize("read", [Tokenizer.from_file, Tokenizer.from_tiktoken, read_text, open_array])
def test_a_file_that_a_broken_disk_does_not_give(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "a.tiktoken"
    path.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match=f"Input/output error: '{path}'"):
        read(path)


@unix
def test_a_current_folder_that_was_removed(tok: Tokenizer, tmp_path: Path) -> None:
    tok.save(tmp_path / "tokenizer.json")
    command = ["encode-corpus", str(tmp_path / "a.txt"), "-o", "shards", "-t", str(tmp_path / "tokenizer.json")]
    removed = "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); "
    found = python(removed + COMMAND.format(command), tmp_path)
    assert found == "bpe-llama: shards: the current folder was removed\n"


def test_a_name_too_long_for_the_file_beside_it_leaves_the_old_file(tok: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * 245}.tiktoken"
    path.write_text("old")
    with pytest.raises(OSError, match="name too long"):
        tok.save(path)
    assert path.read_text() == "old"


@pytest.mark.usefixtures("tok")
def test_an_error_repeats_the_ends_of_a_long_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    arguments = ["-t", f"{tmp_path}/tokenizer.json", "-o", f"{tmp_path}/shards", "--field", "f" * 100_000]
    assert main(["encode-corpus", f"{tmp_path}/a.jsonl", *arguments]) == 2
    error = capsys.readouterr().err
    assert 'a.jsonl, line 1: no field "fff' in error and " ... fff" in error
    assert len(error) < 4100
