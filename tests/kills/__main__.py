"""Every command that writes, killed (SIGKILL) at random moments, or with its disk full, read-only or gone.

After a kill the output is the old one or the new one, and the same command then completes it and removes what the
killed process left. After a failure there is one line on standard error, exit code 2, and the old output.

``python -m tests.kills 100`` tries 100 moments of each kind for each command, and prints what did not hold.
``make kill-test`` does the same. Commands run in forked processes, which import nothing anew.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from bpe_llama._files import complete_writes
from tests.kills.commands import COMMANDS, inputs

Files = dict[str, bytes]


# -- one process -------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How a process ended: its signal or exit code, and what it printed on standard error."""

    signal: int
    code: int
    printed: str


def run(
    folder: Path, command: Callable[[], Any], before: Callable[[], None] | None = None, after: float = 0
) -> Outcome:
    """Run ``command`` in a forked process in ``folder``; ``before`` arms it, or it is killed ``after`` some seconds."""
    with tempfile.TemporaryFile() as errors:
        process = os.fork()
        if not process:
            code = 1
            try:
                os.chdir(folder)
                for descriptor in (1, 2):
                    os.dup2(errors.fileno(), descriptor)
                if before is not None:
                    before()
                code = command() or 0
            except OSError as error:  # a function's: the command line prints one line
                os.write(2, f"bpe-llama: {error}\n".encode())
                code = 2
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        if after:
            time.sleep(after)
            os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        errors.seek(0)
        printed = errors.read().decode(errors="replace")
    return Outcome(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, os.WEXITSTATUS(status), printed)


_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")


def at_each_file_operation(act: Callable[[], None]) -> None:
    """Call ``act`` before each file operation of this process: a write opened, a rename, a removal."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in _CHANGES:
            act()

    sys.addaudithook(hook)


def at_file_operation(number: int, act: Callable[[], None]) -> None:
    """Call ``act`` before the file operation of that number."""
    left = itertools.count(number - 1, -1)
    at_each_file_operation(lambda: None if next(left) else act())


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_byte(number: int) -> None:
    """Have the kernel end this process where a file would grow beyond ``number`` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))


# -- what an output is -------------------------------------------------------------------------------------------------

_TIMES = ("second", "mfu", "data_wait", "memory")


def files_of(out: Path) -> Files:
    """Return the files of an output by name; metrics without times, and no pictures, which show times."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir() or path.suffix == ".png" or path.name == ".lock":
            continue
        content = path.read_bytes()
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in content.splitlines()]
            kept = [{k: v for k, v in line.items() if not any(part in k for part in _TIMES)} for line in lines]
            content = json.dumps(kept).encode()
        elif path.name == "training.json":
            content = json.dumps({k: v for k, v in json.loads(content).items() if k != "elapsed"}).encode()
        elif path.name == "sources.json":
            content = b""  # the times of the inputs
        found[name] = content
    return found


def leftovers(out: Path) -> list[str]:
    return [str(path.relative_to(out)) for path in out.rglob("*") if path.name.endswith((".tmp", ".swap"))]


class Trial:
    """One command in a folder of its own, with its old and new output."""

    def __init__(self, name: str, folder: Path) -> None:
        self.command, self.folder, self.out = COMMANDS[name], folder, folder / "out"
        folder.mkdir()
        inputs(folder, model=self.command.needs_model)
        self.out.mkdir()
        for module in self._imports():
            with suppress(ImportError):  # a few names of sys.modules are no modules
                importlib.import_module(module)
        self._done(self.command.old)
        shutil.copytree(self.out, folder / "old", copy_function=shutil.copyfile)
        self.old = files_of(self.out)
        began = time.perf_counter()
        self._done(self.command.new)
        self.seconds = time.perf_counter() - began
        self.new = files_of(self.out)
        assert self.old != self.new, name
        self.largest = max(len(content) for content in self.new.values())
        self.operations = self._operations()

    def _done(self, command: Callable[[], Any]) -> None:
        outcome = run(self.folder, command)
        assert outcome[:2] == (0, 0), outcome

    def _imports(self) -> list[str]:
        """Return what the command imports, to import it once here: torch may not train before a fork."""
        file = self.folder / "imports"

        def command() -> None:
            self.command.new()
            file.write_text("\n".join(name for name in sys.modules if name not in known))

        known = set(sys.modules)
        self._done(command)
        shutil.rmtree(self.out)
        self.out.mkdir()
        return file.read_text().split()

    def _operations(self) -> int:
        """Return the number of file operations of the command."""
        self.reset()
        count, file = itertools.count(), self.folder / "operations"

        def command() -> None:
            self.command.new()
            file.write_text(str(next(count)))

        run(self.folder, command, lambda: at_each_file_operation(lambda: next(count)))
        return max(1, int(file.read_text()))

    def reset(self) -> None:
        """Put the old output back. The folder ``out`` itself may be a mount."""
        self.out.mkdir(exist_ok=True)
        for path in self.out.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.folder / "old", self.out, copy_function=shutil.copyfile, dirs_exist_ok=True)

    def completes(self) -> Iterator[str]:
        """Run the command to its end, and yield what is wrong then."""
        outcome = run(self.folder, self.command.new)
        if outcome[:2] != (0, 0):
            yield f"the next run fails: {outcome}"
        elif (found := files_of(self.out)) != self.new:
            yield f"the next run gives another output: {differences(found, self.new)}"
        if left := leftovers(self.out):
            yield f"leftovers: {left}"

    def kept(self, what: str) -> Iterator[str]:
        """Yield what is neither the old output nor the new one."""
        if self.command.resumes:
            return
        for folder in {swap.parent for swap in self.out.rglob("*.swap")}:  # as the next load does
            complete_writes(folder)
        written = files_of(self.out).items()
        found = {name: content for name, content in written if not re.search(r"\.(tmp|swap)(/|$)", name)}
        each = all(content in (self.old.get(name), self.new.get(name)) for name, content in found.items())
        if found not in (self.old, self.new) and not (each and self.command.by_file):
            yield f"{what}: {'old and new files together' if each else differences(found, self.old)}"


def differences(found: Files, expected: Files) -> str:
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return ", ".join(
        f"{name} ({'missing' if name not in found else 'extra' if name not in expected else 'other'})" for name in names
    )


# -- kinds of trouble --------------------------------------------------------------------------------------------------


def killed(trial: Trial, draw: random.Random, way: str | None = None) -> Iterator[str]:
    """A kill at some time, before some file operation, or at some byte of a file."""
    trial.reset()
    way = way or draw.choice(("time", "operation", "byte"))
    operation, byte = draw.randint(1, trial.operations), draw.randrange(trial.largest)
    before = {"operation": lambda: at_file_operation(operation, die), "byte": lambda: at_byte(byte)}.get(way)
    run(trial.folder, trial.command.new, before, draw.uniform(0, trial.seconds) + 1e-4 if before is None else 0)
    place = {"operation": f"operation {operation}", "byte": f"byte {byte}", "time": "some time"}[way]
    for wrong in (*trial.kept("after the kill"), *trial.completes()):
        yield f"killed at {place}: {wrong}"


def full(trial: Trial, draw: random.Random) -> Iterator[str]:
    """A disk of 2 MB that has room for a part of the output."""
    with mounted(trial):
        room = draw.randrange(0, max(8192, sum(map(len, trial.new.values())) - 4096), 4096)
        free = os.statvfs(trial.out).f_bavail * 4096
        (trial.out / "filler").write_bytes(bytes(max(0, free - room)))
        outcome = run(trial.folder, trial.command.new)
        (trial.out / "filler").unlink()
        if outcome[:2] != (0, 0):  # else there was room
            yield from told(outcome, ("No space left", "disk is full", "disk full"))
        for wrong in (*trial.kept("after the failure"), *trial.completes()):
            yield f"{room} bytes free: {wrong}"


def read_only(trial: Trial, _draw: random.Random) -> Iterator[str]:
    """A file system that cannot be written to."""
    with mounted(trial):
        subprocess.run(["mount", "-o", "remount,ro", str(trial.out)], check=True)
        yield from told(run(trial.folder, trial.command.new), ("Read-only file system",))
        yield from trial.kept("after the failure")


def removed(trial: Trial, draw: random.Random) -> Iterator[str]:
    """The output's folder is moved away before some file operation."""
    trial.reset()
    operation, away = draw.randint(1, trial.operations), trial.folder / "away"

    def move() -> None:
        if not away.exists():
            os.rename(trial.out, away)

    outcome = run(trial.folder, trial.command.new, lambda: at_file_operation(operation, move))
    shutil.rmtree(away, ignore_errors=True)
    if outcome[:2] != (0, 0):
        yield from (f"gone at operation {operation}: {wrong}" for wrong in told(outcome, ("out",)))


def told(outcome: Outcome, expected: tuple[str, ...]) -> Iterator[str]:
    """Yield what is wrong with the end of a process that had to fail."""
    lines = [line for line in outcome.printed.splitlines() if not line.startswith(("bpe-llama: warning", "--resume"))]
    if outcome[:2] != (0, 2) or len(lines) != 1 or not any(text in lines[0] for text in expected):
        yield f"expected exit code 2 and one line with {expected[0]!r}, got {outcome}"


@contextmanager
def mounted(trial: Trial) -> Iterator[None]:
    """Mount a file system of 2 MB on the output's folder. It needs root on Linux."""
    trial.reset()
    shutil.rmtree(trial.out)
    trial.out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(trial.out)], check=True)
    try:
        trial.reset()
        yield
    finally:
        subprocess.run(["umount", str(trial.out)], check=True)


TROUBLES = {"killed": killed, "full": full, "read-only": read_only, "removed": removed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("moments", type=int)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--troubles", nargs="+", choices=TROUBLES, default=list(TROUBLES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if any(COMMANDS[name].needs_model for name in options.commands):
        import torch

        torch.set_num_threads(1)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in options.commands:
            trial = Trial(name, Path(folder) / name)
            for trouble in options.troubles:
                draw, wrong = random.Random(options.seed), Counter[str]()
                for _ in range(1 if trouble == "read-only" else options.moments):
                    wrong.update(TROUBLES[trouble](trial, draw))
                print(f"{name}, {trouble}: {sum(wrong.values())} wrong", flush=True)
                for text, times in wrong.most_common(8):
                    print(f"    {times} x {text}", flush=True)
                bad += sum(wrong.values())
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
