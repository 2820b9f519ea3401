"""The script that checks a machine with a GPU: failing, hanging, unknown and named steps, without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.cuda import check
from bench.cuda.check import ROOT, Step, run

LEAVES_A_CHILD = """
import subprocess, sys, time, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""


def _runs(process: str) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().split(")")[1]
    except (FileNotFoundError, ProcessLookupError):
        return False


def python(name: str, code: str, seconds: float = 120) -> Step:
    return Step(name, seconds, [sys.executable, "-c", code])


def test_a_failing_and_a_hanging_step_do_not_keep_later_ones_from_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "GRACE", 0.2)
    chosen = [
        python("good", "print('1 passed')"),
        python(
            "bad",
            "print('8b (bar 70%: reached)\\n1b (bar 55%: MISSED)\\n| float8 | does not run: no'); raise SystemExit(4)",
        ),
        python("hangs", LEAVES_A_CHILD, seconds=5),
        python("refuses", "print('refused: no GPU'); raise SystemExit(3)"),
    ]
    started = time.monotonic()
    assert run(chosen, python("beside", "print('compiled')"), tmp_path, dict(os.environ)) == 3
    assert time.monotonic() - started < 300
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    said = {line[0]: " ".join(line[1:]) for line in lines}
    assert list(said) == ["good", "bad", "beside", "hangs", "refuses"]
    assert said["good"].startswith("ok") and said["good"].endswith("1 passed")
    assert said["bad"].startswith("failed (4)") and said["bad"].endswith("1 bars reached, 1 missed, 1 rows do not run")
    assert said["hangs"].startswith("killed")
    assert said["refuses"].startswith("refused") and said["refuses"].endswith("refused: no GPU")
    log = (tmp_path / "cuda-check.log").read_text("utf-8")
    assert log.index("=== good") < log.index("1 passed") < log.index("=== bad") < log.index("=== hangs")
    (child,) = re.findall(r"^child (\d+)$", log, re.MULTILINE)
    until = time.monotonic() + 60
    while _runs(child):
        assert time.monotonic() < until, "the child of a killed step runs on"
        time.sleep(0.01)
    assert (tmp_path / "cuda-compile.log").read_text("utf-8").endswith("compiled\n")


def test_no_step_begins_when_the_time_of_all_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [python("slow", "import time; time.sleep(600)"), python("late", "print('late')")]
    assert run(chosen, None, tmp_path, dict(os.environ), total=1.5) == 2
    said = capsys.readouterr().out
    assert "slow      killed" in said and "late      not started" in said


def test_the_steps_and_their_limits_fit_into_nine_minutes() -> None:
    steps = check.steps(Path("folder"))
    assert sum(step.seconds for step in steps) <= check.TOTAL < 9 * 60
    assert [step.name for step in steps] == [
        *("smoke", "tests", "decode", "products", "sampler", "train", "engine", "demo")
    ]
    tests = check.cuda_tests()
    assert "tests/model/backends/test_cuda_smoke.py" in tests and all((ROOT / path).exists() for path in tests)


def test_named_steps_and_mistakes(tmp_path: Path) -> None:
    """The script as a person starts it; on a machine without a GPU a benchmark refuses by name."""
    script = [sys.executable, str(ROOT / "bench" / "cuda" / "check.py"), "--out", str(tmp_path)]
    done = subprocess.run([*script, "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and "no step 'nothing'; expected smoke, tests" in done.stderr
    done = subprocess.run([*script, "--wheels", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and "holds no wheels; `make cuda-wheel` makes them" in done.stderr
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*script, "engine"], capture_output=True, text=True, env=hidden)
    assert done.returncode == 1
    engine, last = done.stdout.splitlines()
    assert engine.startswith("engine    refused") and "refused: torch sees no CUDA GPU here" in engine
    assert last == f"1 steps did not succeed; full output in {tmp_path}"
