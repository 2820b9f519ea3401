"""The number of threads that commands compute with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bpe_llama.model import device


def test_hyper_threads_of_a_core_and_a_container_s_quota_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3, 4, 5}, raising=False)
    files = {
        f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 4},{cpu % 4 + 4}\n"
        for cpu in range(6)
    }

    def read(path: Path, *_: object) -> str:
        try:
            return files[str(path)]
        except KeyError:
            raise FileNotFoundError(str(path)) from None

    monkeypatch.setattr(Path, "read_text", read)
    assert device.default_threads() == 4  # 4 and 5 share the cores of 0 and 1
    for quota, expected in {"max 100000": 4, "250000 100000": 2, "50000 100000": 1, "900000 100000": 4}.items():
        files["/sys/fs/cgroup/cpu.max"] = quota
        assert device.default_threads() == expected
    files.clear()
    assert device.default_threads() == 6  # a system that does not say which threads share a core


def test_threads_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    with device.computing_threads(2):
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(device, "default_threads", lambda: 1)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        with device.computing_threads():
            assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        with device.computing_threads():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="threads is 0; expected at least 1"), device.computing_threads(0):
        pass
    with (
        pytest.raises(ValueError, match=r"threads is 100.*; expected at most 1,024"),
        device.computing_threads(10**400),
    ):
        pass


def test_threads_that_cannot_be_started_are_named(
    monkeypatch: pytest.MonkeyPatch, limit_threads: Callable[[int], None]
) -> None:
    before = torch.get_num_threads()
    limit_threads(0)
    with device.computing_threads(1):
        assert torch.get_num_threads() == 1
    limit_threads(1)
    with pytest.raises(ValueError, match="threads is 3, but the system lets only 2 run"), device.computing_threads(3):
        pass
    monkeypatch.setattr(device, "default_threads", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.warns(UserWarning, match="lets only 1 run; computing with 1"), device.computing_threads():
        monkeypatch.undo()
        assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
