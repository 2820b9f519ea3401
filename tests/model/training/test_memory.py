"""What a training run does with freed memory, in a new process: what earlier tests left in the heap would count."""

from __future__ import annotations

import contextlib
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from bpe_llama.model.training.process import keep_freed_memory, return_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

FLOATS = 1 << 24  # 64 MiB, which glibc maps and unmaps each time


@contextlib.contextmanager
def kept() -> Iterator[None]:
    keep_freed_memory()
    try:
        yield
    finally:
        return_freed_memory()


def new_pages() -> int:
    """Return the fewest page faults of one of several large tensors, made one after the other."""
    faults = []
    for _ in range(12):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(FLOATS)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(faults)


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def counted() -> dict[str, int]:
    """Return page faults, and bytes that became resident."""
    found = {"by default": new_pages()}
    before = resident()
    with kept():
        found["kept"] = new_pages()
        torch.ones(4 * FLOATS)
        found["held"] = resident() - before
    return found | {"left": resident() - before}


@pytest.fixture(scope="module")
def found() -> dict[str, int]:
    output = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True).stdout
    counts: dict[str, int] = json.loads(output)
    return counts


def test_freed_memory_serves_the_next_step(found: dict[str, int]) -> None:
    assert found["kept"] < 16


def test_freed_memory_is_returned_by_default(found: dict[str, int]) -> None:
    assert found["by default"] >= 32  # huge pages of 2 MiB at least


def test_kept_memory_returns_at_the_end(found: dict[str, int]) -> None:
    assert found["held"] > 2 * FLOATS * 4
    assert found["left"] < FLOATS * 4


if __name__ == "__main__":
    print(json.dumps(counted()))
