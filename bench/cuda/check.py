"""Everything that is checked on a machine with a CUDA GPU, within nine minutes: ``make cuda``.

    python3 bench/cuda/check.py --wheels dist/cuda --out OUT            # all steps
    python3 bench/cuda/check.py --wheels dist/cuda smoke decode         # only these

It needs nothing from outside: a Python with torch, Triton, transformers, safetensors, pytest, hypothesis, typer and
jinja2, and the wheels that ``make cuda-wheel`` puts into one folder. They are installed into a temporary folder,
without dependencies. Without ``--wheels`` the installed package is checked.

Each step has its own time limit, after which it is killed with all that it started; the next one then begins. A line is
printed for each step. The full output is in two files of the output folder: ``cuda-check.log``, and
``cuda-compile.log`` for the compilation of the kernels, which runs beside the first two steps. The exit code is 0 if
every step succeeded.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TOTAL = 530.0
"""Seconds of all steps together: ten less than nine minutes, for the installation and what a killed step leaves."""
GRACE = 3.0
"""Seconds that a step at its limit has to end by itself."""


class Step(NamedTuple):
    """A command and its limit in seconds."""

    name: str
    seconds: float
    command: Sequence[str]


def cuda_tests() -> list[str]:
    """Return the files with tests that need a GPU: others may import what is not installed there."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "mark.cuda" in path.read_text("utf-8")]


def pytest(*options: str) -> list[str]:
    """Return the command of the tests; warnings of other versions of torch are shown, and no errors."""
    return [sys.executable, "-m", "pytest", "-m", "cuda", "-W", "default", "-p", "no:cacheprovider", "-q", *options]


def bench(module: str, *options: str) -> list[str]:
    """Return the command of a benchmark."""
    return [sys.executable, "-m", f"bench.{module}", *options]


def steps(folder: Path) -> list[Step]:
    """Return all steps, in their order."""
    workers = min((os.cpu_count() or 1) // 2, 6) if importlib.util.find_spec("xdist") else 0
    demo = [sys.executable, "-m", "bpe_llama.cli", "demo", "--device", "cuda", "--seconds", "15"]
    return [
        Step("smoke", 60, pytest("-x", "tests/model/backends/test_cuda_smoke.py")),
        Step("tests", 100, pytest(*(["-n", str(workers)] if workers > 1 else []), *cuda_tests())),
        Step("decode", 140, bench("cuda.decode")),
        Step("products", 25, bench("cuda.products")),
        Step("sampler", 35, bench("sample", "--cuda", "--rounds", "5")),
        Step("train", 90, bench("cuda.train")),
        Step("engine", 40, bench("cuda.engine")),
        Step("demo", 40, [*demo, "--out", str(folder / "demo")]),
    ]


def compilation() -> Step:
    """Return the step that compiles the kernels of the benchmarks side by side, which Triton keeps on disk."""
    each = [
        bench("cuda.decode", "--bare", "--shapes", shape, "--weights", weights, "--layers", "1", "--tokens", "4",
              "--prompts", "128")
        for shape in ("8b", "1b")
        for weights in ("bfloat16", "int8", "int4")
    ]  # fmt: skip
    started = "import subprocess, sys; run = [subprocess.Popen(c) for c in {}]; sys.exit(max(r.wait() for r in run))"
    return Step("compile", 140, [sys.executable, "-c", started.format(each)])


class Running:
    """A step that has been started, with all that it starts in a session of its own."""

    def __init__(self, step: Step, log: IO[bytes], environment: dict[str, str]) -> None:
        self.step, self.log, self.start = step, log, time.monotonic()
        log.write(f"\n=== {step.name}: {' '.join(step.command)}\n".encode())
        log.flush()
        self.offset = log.tell()
        self.process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def finish(self, limit: float) -> tuple[bool, str]:
        """Wait until the step ends or the limit is over; return whether it succeeded, and its line."""
        try:
            code: int | None = self.process.wait(max(limit - (time.monotonic() - self.start), 0))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            self.kill()
        seconds = time.monotonic() - self.start
        said = {0: "ok", None: "killed", 3: "refused"}.get(code, f"failed ({code})")
        line = f"{self.step.name:<10}{said:<12}{seconds:6.1f} s of {self.step.seconds:<5.0f}{self.summary()}"
        return code == 0, line

    def kill(self) -> None:
        """End what is left of the step."""
        for signal_, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 1.0)):
            try:
                os.killpg(self.process.pid, signal_)
            except ProcessLookupError:
                break
            deadline = time.monotonic() + wait
            while time.monotonic() < deadline and _alive(self.process):
                time.sleep(0.05)

    def summary(self) -> str:
        """Return how many bars were reached and rows did not run, or the last line of the output."""
        self.log.flush()
        with open(self.log.name, "rb") as written:
            written.seek(self.offset)
            text = written.read().decode("utf-8", "replace")
        reached, missed = text.count(": reached"), text.count(": MISSED")
        broken = text.count("| does not run: ")
        if reached or missed or broken:
            return f"{reached} bars reached, {missed} missed" + (f", {broken} rows do not run" if broken else "")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][:100] if lines else ""


def _alive(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process of the session is left."""
    process.poll()  # a finished leader would count as one
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def run(
    chosen: Sequence[Step], beside: Step | None, out: Path, environment: dict[str, str], total: float = TOTAL
) -> int:
    """Run steps one after the other, and return the number of those that did not succeed.

    Args:
        chosen: The steps.
        beside: One that runs beside the others, until the third begins.
        out: Folder of the logs.
        environment: Of all steps.
        total: Seconds after which no step begins or goes on.
    """
    out.mkdir(parents=True, exist_ok=True)
    started, failed = time.monotonic(), 0
    with (out / "cuda-check.log").open("wb") as log, (out / "cuda-compile.log").open("wb") as other_log:
        other = Running(beside, other_log, environment) if beside is not None else None
        try:
            for number, step in enumerate(chosen):
                if other is not None and number == 2:
                    failed += not _tell(other.finish(other.step.seconds))
                    other = None
                left = total - (time.monotonic() - started)
                if left < min(step.seconds, 1):
                    failed += not _tell((False, f"{step.name:<10}not started: the time of all steps is over"))
                    continue
                failed += not _tell(Running(step, log, environment).finish(min(step.seconds, left)))
        finally:
            if other is not None:
                failed += not _tell(other.finish(other.step.seconds))
    return failed


def _tell(result: tuple[bool, str]) -> bool:
    print(result[1], flush=True)
    return result[0]


def install(wheels: Path, site: Path) -> None:
    """Install the wheels of a folder into another, without their dependencies.

    Raises:
        SystemExit: If there are none, or they do not fit this Python.
    """
    found = sorted(map(str, wheels.glob("*.whl")))
    if not found:
        raise SystemExit(f"{wheels} holds no wheels; `make cuda-wheel` makes them")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--target", str(site), *found]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the wheels cannot be installed:\n{done.stderr}")


def main() -> int:
    """Run the steps, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [step.name for step in steps(Path())]
    parser.add_argument("steps", nargs="*", metavar="step", help=f"of {', '.join(names)}; by default all")
    parser.add_argument("--wheels", type=Path, help="folder with the package's wheel and others")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "cuda-out")), help="folder of the logs")
    given = parser.parse_args()
    unknown = [name for name in given.steps if name not in names]
    if unknown:
        parser.error(f"no step {unknown[0]!r}; expected {', '.join(names)}")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if given.wheels is not None:
            site = Path(folder) / "site"
            install(given.wheels, site)
            environment["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        chosen = [step for step in steps(Path(folder)) if not given.steps or step.name in given.steps]
        beside = compilation() if not given.steps else None
        failed = run(chosen, beside, given.out, environment)
    print(f"{failed} steps did not succeed; full output in {given.out}" if failed else f"all succeeded; {given.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
