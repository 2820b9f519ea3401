"""Ctrl-C for a process that computes, and the processor time until it ends: other programs do not lengthen that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any


def let_run(process: subprocess.Popen[Any], seconds: float) -> None:
    """Wait until a process has used ``seconds`` of the processor from now on."""
    until, limit = _used(process) + seconds, time.monotonic() + 120
    while _used(process) < until and process.poll() is None:
        assert time.monotonic() < limit, "the process does not compute"
        time.sleep(0.01)


def interrupted(process: subprocess.Popen[Any], pipe: IO[Any]) -> tuple[Any, float]:
    """Send Ctrl-C, and return what a process still writes into a pipe, and the processor time until it closes that."""
    before = _used(process)
    process.send_signal(signal.SIGINT)
    hangs = threading.Timer(300, process.kill)
    hangs.start()
    written = pipe.read()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and can still be asked
    hangs.cancel()
    return written, _used(process) - before


def assert_ctrl_c_ends(script: str, said: str) -> None:
    """Run a script that prints "ready" and computes, and assert that it ends after Ctrl-C and has printed this."""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        let_run(child, 0.3)
        out, took = interrupted(child, child.stdout)
    assert out == said
    assert took < 3.0, f"{took:.1f} s; a second is promised, and a slow machine may take three"


def _used(process: subprocess.Popen[Any]) -> float:
    """Return the seconds of the processor that a process has used; where Linux does not tell, seconds of the clock."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
