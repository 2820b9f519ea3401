"""Files that people really have: pipes, devices, full disks, killed processes, names of 250 bytes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpe_llama import Tokenizer, WordCounts
from bpe_llama._core import FileLines
from bpe_llama._files import append_bytes, atomic_write, locked, read_bytes, read_json, write_text
from bpe_llama._files.arrays import begin_array
from bpe_llama._loading import tiktoken

unix = pytest.mark.skipif(sys.platform == "win32", reason="named pipes and signals of Unix")


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train_from_iterator(["abab"] * 9, 258, progress=False)


# -- what is no regular file -------------------------------------------------------------------------------------------

READERS: dict[str, Callable[[Path], Any]] = {
    "a corpus to count": lambda path: WordCounts.from_files(path, progress=False),
    "a corpus to encode": lambda path: Tokenizer.train_from_iterator(["a"], 256, progress=False).encode_files(
        path, path.with_suffix(".npy"), progress=False
    ),
    "a corpus to train on": lambda path: Tokenizer.train(path, vocab_size=256, progress=False),
    "counts": WordCounts.load,
    "json": read_json,
    "lines": FileLines,
    "tiktoken": lambda path: Tokenizer.from_tiktoken(path, pattern="cl100k"),
    "tokenizer": Tokenizer.from_file,
    "tokenizer.json": Tokenizer.from_huggingface,
}
NAMES = {"tokenizer.json": "tokenizer.json", "tiktoken": "a.tiktoken"}


@unix
@pytest.mark.parametrize("reader", READERS)
def test_a_named_pipe_is_refused_by_name_and_waits_for_nobody(reader: str, tmp_path: Path) -> None:
    path = tmp_path / NAMES.get(reader, "pipe")
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{path.name}: a named pipe.*expected a regular file"):
        READERS[reader](path)


@unix
def test_a_pipe_in_a_corpus_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abab")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: a named pipe"):
        Tokenizer.train(tmp_path, vocab_size=256, progress=False)


def test_a_file_too_large_for_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.write(b'{"model": ')
        file.truncate(10 << 30)  # sparse
    with pytest.raises(ValueError, match=r"tokenizer.json: 10,737,418,240 bytes; at most 1,073,741,824 are read"):
        read_json(path)
    with pytest.raises(ValueError, match=r"tokenizer.json: 10,737,418,240 bytes"):
        Tokenizer.from_file(path)
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match="not valid JSON"):
        read_json(path)
    assert read_bytes(path, 200_000) == b"[" * 200_000


WRITERS_OF_ONE_FILE: dict[str, Callable[[Path, Tokenizer], Any]] = {
    "counts": lambda path, _: WordCounts.from_iterator(["a"], progress=False).save(path),
    "ids": lambda path, _: save_ids(path),
    "text": lambda path, _: write_text(path, "a"),
}


@unix
@pytest.mark.parametrize("writer", WRITERS_OF_ONE_FILE)
def test_a_named_pipe_or_a_link_to_one_is_not_replaced_by_a_file(writer: str, tok: Tokenizer, tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(
            OSError, match=f"a named pipe or a device.*{path.name}|{path.name}.*a named pipe or a device"
        ):
            WRITERS_OF_ONE_FILE[writer](path, tok)
    assert pipe.is_fifo() and link.is_symlink() and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("writer", WRITERS_OF_ONE_FILE)
def test_a_folder_is_refused_before_anything_is_written(writer: str, tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"Is a directory: .*folder"):
        WRITERS_OF_ONE_FILE[writer](tmp_path / "folder", tok)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


# -- atomic writes -----------------------------------------------------------------------------------------------------


def test_writers_at_once_leave_one_whole_file(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path, errors = tmp_path / "a.txt", []

    def write(text: str) -> None:
        try:
            for _ in range(100):
                with atomic_write(path) as temporary:
                    temporary.write_text(text * 1000)
        except OSError as error:
            errors.append(error)

    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)  # between any two steps of a writer, the others take some of theirs
    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert path.read_text() in {letter * 1000 for letter in "abcdefgh"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_another_writer_has_locked_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a folder for abandoned if it comes between the lock file and its lock, and then removes it."""
    module = sys.modules[atomic_write.__module__]
    lock_at_once, taken = module.lock_at_once, []

    def lock_second(descriptor: int) -> None:
        if not taken:
            taken.extend(path.name for path in tmp_path.iterdir())
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        lock_at_once(descriptor)

    monkeypatch.setattr(module, "lock_at_once", lock_second)
    with atomic_write(tmp_path / "a.txt") as temporary:
        assert len(taken) == 1 and temporary.parent.name not in taken
        temporary.write_text("whole")
    assert (tmp_path / "a.txt").read_text() == "whole"


@pytest.mark.parametrize("write", [atomic_write, locked], ids=["atomic_write", "locked"])
@pytest.mark.parametrize("name", ["mkdir", "open", "stat", "fstat", "rename", "replace", "unlink", "rmdir", "close"])
def test_ctrl_c_at_any_system_call_leaves_no_temporary_file(
    write: Callable[[Path], Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, left = getattr(os, name), 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            signal.raise_signal(signal.SIGINT)
        found = call(*arguments, **options)
        if left == 0:
            signal.raise_signal(signal.SIGINT)
        return found

    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            left = number
            patch.setattr(os, name, interrupted)
            with write(folder / "ids") as temporary:
                (temporary or folder / "ids" / "file").write_text("new")
        assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
        assert {path.read_text() for path in folder.rglob("*") if path.is_file()} <= {"new"}
        if left > 0:  # the function was called less often
            return
    pytest.fail("99 calls")


def test_a_long_name_an_error_and_a_folder_in_its_place(tmp_path: Path) -> None:
    long = tmp_path / ("ü" * 120 + ".txt")
    with atomic_write(long) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(long) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert long.read_text() == "old"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as refused, atomic_write(tmp_path / "folder") as temporary:
        temporary.write_text("new")
    assert refused.value.filename == str(tmp_path / "folder")
    with pytest.raises(FileNotFoundError) as missing, atomic_write(tmp_path / "no" / "a.txt") as temporary:
        temporary.write_text("new")
    assert missing.value.filename == str(tmp_path / "no" / "a.txt")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", long.name]


@unix
def test_a_planted_link_is_not_followed_and_the_mode_is_that_of_new_files(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    for place in range(20):
        (tmp_path / f".a.txt.{place}.tmp").symlink_to(tmp_path / "target")
    (tmp_path / "new").touch()
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
        temporary.chmod(0o600)  # as safetensors leaves it
    assert (tmp_path / "target").read_text() == "mine"
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "new").stat().st_mode


@unix
def test_a_lock_that_is_a_link_or_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    for place, plant in enumerate((lambda path: path.symlink_to(tmp_path / "target"), os.mkfifo, Path.mkdir)):
        folder = tmp_path / str(place)
        folder.mkdir()
        plant(folder / ".lock")
        with pytest.raises(ValueError, match=r"\.lock: expected no file, or the lock of a run"), locked(folder):
            pass
    assert (tmp_path / "target").read_text() == "mine"


KILLED = """
import os, signal, sys
from pathlib import Path
from bpe_llama._files.arrays import begin_array
from bpe_llama._loading import tiktoken
with begin_array(Path(sys.argv[1]) / "ids.npy", "uint16"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@unix
def test_the_next_write_removes_what_a_killed_process_left(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "ids.npy").write_bytes(b"old")
    (tmp_path / "a.txt").write_text("abab")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "ids.npy").read_bytes() == b"old"
    assert any(entry.name.endswith(".tmp") for entry in tmp_path.iterdir())
    with atomic_write(tmp_path / "ids.npy") as live:
        tok.encode_files(tmp_path / "a.txt", tmp_path / "ids.npy", progress=False)
        live.write_bytes(b"new")  # not removed while this process holds its lock
    assert (tmp_path / "ids.npy").read_bytes() == b"new"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.txt", "ids.npy"]


def test_a_tiktoken_file_whose_saving_ended_between_its_two_files_is_refused(
    tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "v.tiktoken"
    tok.save(path)
    other = Tokenizer.train_from_iterator(["cdcd"] * 9, 258, pattern="cl100k", special_tokens=["<s>"], progress=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        write_text = tiktoken.write_text
        patch.setattr(tiktoken, "write_text", lambda *given: (write_text(*given), signal.raise_signal(signal.SIGINT)))
        other.save(path)
    with pytest.raises(ValueError, match=r"v\.tiktoken\.json: sha256 is '[0-9a-f]+', but that of v\.tiktoken is"):
        Tokenizer.from_file(path)
    other.save(path)
    assert Tokenizer.from_file(path).special_tokens == other.special_tokens


@unix
def test_commands_killed_at_any_moment_leave_the_old_or_the_new_file() -> None:
    """A few of the moments of `make kill-test`."""
    script = [sys.executable, "-m", "tests.kills", "3", "--troubles", "killed", "removed"]
    commands = ["train-tokenizer", "encode", "encode-files", "counts", "save-tiktoken", "encode-corpus"]
    done = subprocess.run([*script, "--commands", *commands], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count(": 0 wrong\n") == 2 * len(commands), done.stdout + done.stderr


# -- a full disk -------------------------------------------------------------------------------------------------------


def save_array(path: Path) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.zeros(100_000))


def save_tensors(path: Path) -> None:
    import torch

    from bpe_llama.model.checkpoints.tensor_files import save

    save({"a": torch.zeros(100_000)}, path)


def save_text(path: Path) -> None:
    write_text(path, json.dumps(list(range(100_000))))


def save_ids(path: Path) -> None:
    with begin_array(path, "uint16") as array:
        array.append(np.arange(50_000))


def save_counts(path: Path) -> None:
    letters = str.maketrans("0123456789", "ghijklmnop")  # a pre-token has no more than three digits
    words = (hashlib.sha256(b"%d" % number).hexdigest().translate(letters) for number in range(3_000))
    WordCounts.from_iterator(words, progress=False).save(path)


WRITERS = {"array": save_array, "counts": save_counts, "ids": save_ids, "tensors": save_tensors, "text": save_text}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_error_that_names_the_file_and_leaves_the_old_one(writer: str, full_disk: Path) -> None:
    path = full_disk / "out"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left") as full:
        WRITERS[writer](path)
    assert str(path) in str(full.value)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in full_disk.iterdir()] == ["out"]


def test_a_line_for_which_a_disk_has_no_space(full_disk: Path) -> None:
    with (full_disk / "lines").open("ab", buffering=0) as file, pytest.raises(OSError, match="No space left") as full:
        append_bytes(file, bytes(1 << 20))
    assert full.value.filename == str(full_disk / "lines")


# -- no threads to be had ----------------------------------------------------------------------------------------------

ALONE = """
import os, resource, sys, threading
import numpy as np
import bpe_llama
from bpe_llama import Sampler, Tokenizer, WordCounts
texts = ["system user assistant"] * 500
tok = Tokenizer.train_from_iterator(texts, 270, progress=False, num_threads=1)
expected = tok.encode_batch(texts, num_threads=1)
logits = np.random.default_rng(0).normal(size=(8, 128_256)).astype(np.float32)
sampler = Sampler(temperature=0.8, top_p=0.9, seed=0)
drawn, shares = sampler.sample(logits, step=0, num_threads=1), sampler.probs(logits, num_threads=1)
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
try:
    threading.Thread(target=print).start()
except RuntimeError:
    pass
else:
    sys.exit("a thread could be started")
assert tok.encode_batch(texts, num_threads=4) == expected
assert tok.encode_batch(texts) == expected
assert tok.encode_batch_to_numpy(texts, num_threads=4)[0].tolist() == sum(expected, [])
assert Tokenizer.train_from_iterator(texts, 270, progress=False, num_threads=4).merges == tok.merges
assert WordCounts.from_iterator(texts, progress=False, num_threads=4).total == WordCounts.from_iterator(
    texts, progress=False, num_threads=1).total
for threads in (4, None):
    assert (sampler.sample(logits, step=0, num_threads=threads) == drawn).all()
assert (sampler.probs(logits, num_threads=4) == shares).all()
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of processes is Linux's")
def test_where_no_thread_can_be_started_the_caller_does_the_work() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=300)
    assert done.stdout == "done\n", done.stderr


def test_an_error_of_reading_is_not_one_of_a_full_disk(tmp_path: Path) -> None:
    for reason, message in (
        ("a.txt: the file shrank while it was read", r"^a\.txt: the file shrank"),  # the core's
        ("100 requested and 10 written", r"No space left on device, it seems.*out\.npy"),  # numpy's
    ):
        with pytest.raises(OSError, match=message), atomic_write(tmp_path / "out.npy"):
            raise OSError(reason)
