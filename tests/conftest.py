"""Fixtures of all tests: real data, and torch on one thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.data import DataUnavailable
from tests.hub_server import Hub, serving

# Several test processes share the processors. OpenMP's threads would spin while they wait for each other, and with
# other processes in their place that is most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real() -> Callable[..., Any]:
    """Return ``call(function, *arguments)``: runs a function of `bench.data`, skipping the test where data is missing.

    With ``BPE_LLAMA_REQUIRE_DATA=1`` (continuous integration, ``make parity``) missing data fails the test instead.

    >>> def test_something(real):
    ...     path = real(data.vocabulary, "cl100k")
    """

    def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except DataUnavailable as error:
            if os.environ.get("BPE_LLAMA_REQUIRE_DATA") == "1":
                pytest.fail(f"data required: {error}")
            pytest.skip(f"data unavailable: {error}")

    return call


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Return a server that stands in for the Hugging Face Hub, with an empty cache at ``tmp_path / "hub"``."""
    import huggingface_hub
    from huggingface_hub import constants, hf_api

    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def fresh_compiler() -> None:
    """Forget what earlier tests compiled: `torch.compile` refuses to compile one function too often."""
    import torch

    torch._dynamo.reset()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run torch on one thread and without gradients (a test that needs them uses ``torch.enable_grad()``).

    Small models gain nothing from a second thread, and wait for it on a busy machine.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def limit_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function after whose call only so many more threads can be started."""
    start = threading.Thread.start

    def limit(threads: int) -> None:
        left = iter(range(threads))

        def limited(thread: threading.Thread) -> None:
            if next(left, None) is None:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)

    return limit
