"""Files of one folder that replace the old ones together: killed processes, errors, a full disk."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bpe_llama import Tokenizer
from bpe_llama._files import atomic_write, complete_writes, write_text, write_together

unix = pytest.mark.skipif(sys.platform == "win32", reason="fork")

KILLED_AT_EACH_STEP = """
import os, sys
from pathlib import Path
from bpe_llama._files import complete_writes, write_together, write_text

FILES = ["config.json", "generation_config.json", "weights"]

def contents(folder):
    return {name: (folder / name).read_text() if (folder / name).exists() else None for name in FILES}

def killed_at(step):
    left = [step]
    def count(event, _):
        if event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir"):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
    sys.addaudithook(count)

old = dict.fromkeys(FILES, "old")
new = {"config.json": "new", "generation_config.json": None, "weights": "new"}
for step in range(1000):
    folder = Path(sys.argv[1], str(step))
    folder.mkdir()
    for name in (*FILES, "notes.txt"):
        (folder / name).write_text("old")
    child = os.fork()
    if child == 0:
        killed_at(step)
        with write_together(folder, "config.json", ["generation_config.json"]) as temporary:
            write_text(temporary / "weights", "new")
            write_text(temporary / "config.json", "new")
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = contents(folder)
    assert found in (old, new) or found["config.json"] is None, found
    complete_writes(folder)
    assert contents(folder) in (old, new), (step, contents(folder))
    write_text(folder / "notes.txt", "old")
    assert contents(folder) in (old, new), (step, contents(folder))
    assert {path.name for path in folder.iterdir()} <= {*FILES, "notes.txt"}, list(folder.iterdir())
    if status == 0:
        break
print(step)
"""


@unix
def test_a_process_killed_at_any_step_leaves_the_old_files_or_the_new_ones(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_AT_EACH_STEP, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_an_error_leaves_the_old_files_and_names_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "weights").mkdir()
    with pytest.raises(IsADirectoryError) as wrong, write_together(tmp_path, "config.json") as temporary:
        write_text(temporary / "config.json", "new")
        write_text(temporary / "weights", "new")
    assert wrong.value.filename == str(tmp_path / "weights")
    with pytest.raises(OSError, match="No space") as full, write_together(tmp_path, "config.json") as temporary:
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary / "weights"))
    assert full.value.filename == str(tmp_path / "weights")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.json", "weights"]
    assert (tmp_path / "config.json").read_text() == "old"


def interrupted(folder: Path, rename: list[str], remove: list[str]) -> Path:
    """Write what a killed process leaves: a temporary folder with its plan."""
    swap = folder / ".config.json.0123456789abcdef.swap"
    swap.mkdir(parents=True)
    (swap / "config.json").write_text("new")
    (swap / ".lock").touch()
    (swap / ".plan.json").write_text(json.dumps({"rename": rename, "remove": remove}))
    return swap


def test_a_folder_that_is_being_written_is_refused(tmp_path: Path) -> None:
    swap = interrupted(tmp_path / "model", ["config.json"], [])
    descriptor = os.open(swap / ".lock", os.O_RDWR)
    sys.modules[atomic_write.__module__].lock_at_once(descriptor)
    with pytest.raises(ValueError, match="model: its files are being replaced, or a process was killed"):
        complete_writes(tmp_path / "model")
    os.close(descriptor)
    complete_writes(tmp_path / "model")
    assert [entry.name for entry in (tmp_path / "model").iterdir()] == ["config.json"]


@unix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="becomes another user")
def test_another_user_reads_a_folder_while_it_is_written(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    with write_together(tmp_path, "config.json"):
        child = os.fork()
        if child == 0:
            os.setuid(65534)
            try:
                complete_writes(tmp_path)
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


def test_a_tokenizer_is_saved_with_its_config_and_templates_or_not_at_all(tmp_path: Path) -> None:
    tok = Tokenizer.train_from_iterator(["low"], vocab_size=257, progress=False)
    tok.chat_template = {"default": "old", "rag": "old"}
    tok.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    new = tok.with_special_tokens(["<x>"])
    new.chat_template = "new"
    with pytest.raises(IsADirectoryError, match="chat_template"):
        new.save(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "chat_template.jinja").rmdir()
    (tmp_path / "chat_template.json").write_text("{}")
    new.save(tmp_path / "tokenizer.json")
    names = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == names
    with pytest.raises(FileNotFoundError, match="no-such"):
        new.save(tmp_path / "no-such" / "tokenizer.json")


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_a_killed_save_of_a_tokenizer_is_completed_by_the_next_load(name: str, tmp_path: Path) -> None:
    tok = Tokenizer.train_from_iterator(["low"], vocab_size=257, progress=False)
    tok.save(tmp_path / "other")
    swap = interrupted(tmp_path / "saved", ["tokenizer.json"], [])
    (tmp_path / "other" / "tokenizer.json").rename(swap / "tokenizer.json")
    assert Tokenizer.from_file(tmp_path / "saved" / name).vocab_size == 257


def test_what_an_older_write_left_replaces_nothing_of_a_newer_one(tmp_path: Path) -> None:
    swap = interrupted(tmp_path, ["config.json"], [])
    descriptor = os.open(swap / ".lock", os.O_RDWR)
    sys.modules[atomic_write.__module__].lock_at_once(descriptor)  # so that it cannot be completed
    with write_together(tmp_path, "config.json") as temporary:
        write_text(temporary / "config.json", "newer")
    os.close(descriptor)
    complete_writes(tmp_path)
    write_text(tmp_path / "notes.txt", "removes the older one")
    assert (tmp_path / "config.json").read_text() == "newer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "notes.txt"]


@unix
def test_files_of_two_writers_at_once_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def replace_slowly(path: Path, target: Path) -> Path:
        time.sleep(0.005)
        return replace(path, target)

    def write(text: str) -> None:
        for _ in range(4):
            with write_together(tmp_path, "config.json", ["weights-*"]) as temporary:
                for name in ("config.json", "weights", f"weights-{text}"):
                    (temporary / name).write_text(text)

    monkeypatch.setattr(Path, "replace", replace_slowly)
    with ThreadPoolExecutor() as pool:
        list(pool.map(write, "abc"))
    last = (tmp_path / "config.json").read_text()
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == dict.fromkeys(["config.json", "weights", f"weights-{last}"], last)


def test_a_file_written_after_the_renames_stays(tmp_path: Path) -> None:
    swap = interrupted(tmp_path, ["config.json"], ["generation_config.json"])
    (swap / "config.json").rename(tmp_path / "config.json")  # and the process was killed
    (tmp_path / "generation_config.json").write_text("written since")
    complete_writes(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "generation_config.json"]


def test_a_folder_in_place_of_an_old_file_stays(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").mkdir()
    with write_together(tmp_path, "config.json", ["generation_config.json"]) as temporary:
        write_text(temporary / "config.json", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "generation_config.json"]


def test_what_cannot_be_renamed_is_refused_before_anything_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "file").write_text("old")
    with pytest.raises(NotADirectoryError), write_together(tmp_path, "config.json") as temporary:
        (temporary / "file").mkdir()
        write_text(temporary / "file" / "weights", "new")
        write_text(temporary / "config.json", "new")
    deep = pytest.raises(ValueError, match="expected a file in the folder")
    with deep, write_together(tmp_path, "config.json") as temporary:
        (temporary / "a" / "b").mkdir(parents=True)
        write_text(temporary / "a" / "b" / "c", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"config.json": "old", "file": "old"}


@unix
@pytest.mark.parametrize("name", ["../outside", "{outside}", "link/outside", "a/b/outside", "", "\0"])
def test_a_strangers_plan_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    swap = interrupted(tmp_path / "model", [name.format(outside=outside), "config.json"], [])
    for folder in (swap, swap.parent):
        (folder / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"model/.*\.plan\.json: damaged; remove "):
        complete_writes(swap.parent)
    (swap / ".plan.json").write_text('{"rename": 3}')
    with pytest.raises(ValueError, match=r"model/.*\.plan\.json: damaged; remove "):
        complete_writes(swap.parent)
    write_text(swap.parent / "notes.txt", "a write leaves it")
    assert (swap / "config.json").exists() and outside.read_text() == "mine"


def test_a_full_disk_leaves_the_old_model_in_its_folder(full_disk: Path) -> None:
    from bpe_llama.model import LlamaForCausalLM
    from bpe_llama.model.training.checkpoints.finished import save_with_tokenizer
    from tests.small_models import tiny_model

    tok = Tokenizer.train_from_iterator(["abab"] * 9, 258, progress=False)
    shape = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 258, "num_attention_heads": 2}
    save_with_tokenizer(tiny_model(**shape), tok, full_disk / "model")
    before = {path.name: path.read_bytes() for path in (full_disk / "model").iterdir()}
    with pytest.raises(OSError, match="No space left") as full:
        save_with_tokenizer(tiny_model(**shape | {"hidden_size": 16}), tok, full_disk / "model")
    assert full.value.filename == str(full_disk / "model" / "model.safetensors")
    assert {path.name: path.read_bytes() for path in (full_disk / "model").iterdir()} == before
    assert LlamaForCausalLM.from_pretrained(full_disk / "model", device="cpu").config.hidden_size == 8
