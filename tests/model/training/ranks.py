"""Processes that train one model together, forked from the test's own, as `torchrun` would start them."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo
import torch._inductor.config
import torch.distributed.checkpoint.hf_storage
import torch.distributed.fsdp
import torch.distributed.tensor


def free_port() -> int:
    """Return a port below those that systems give to clients, one of which could take it before the ranks do."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


def start(world: int, work: Callable[[int], None], log: Path) -> list[int]:
    """Fork `world` processes that call `work(rank)`, with torchrun's environment, and return their process ids."""
    port = free_port()
    processes = []
    for rank in range(world):
        process = os.fork()
        if process:
            processes.append(process)
            continue
        code = 1
        try:
            with open(log.with_suffix(f".{rank}"), "w", buffering=1) as sys.stderr:
                torch.set_num_threads(1)
                torch._inductor.config.compile_threads = 1  # the threads of the test's process are not forked
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
                os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
                try:
                    work(rank)
                    code = 0
                except BaseException:
                    traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(code)
    return processes


def wait(processes: list[int], seconds: float = 300.0) -> list[int]:
    """Return the exit codes; -9 and so on for signals. Processes that take longer are killed."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(codes) < len(processes):
        for process in set(processes) - codes.keys():
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                codes[process] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[process] for process in processes]


def run(world: int, work: Callable[[int], None], log: Path) -> None:
    """Run `work(rank)` on all ranks to its end."""
    codes = wait(start(world, work, log))
    logs = "\n".join(path.read_text() for path in sorted(log.parent.glob(f"{log.stem}.*")))
    assert codes == [0] * world, f"{codes}\n{logs}"
