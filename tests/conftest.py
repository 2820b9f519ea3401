"""Fixtures of all tests: real data, and torch on one thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.data import DataUnavailable


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
