"""Real text for the parity tests, read once a session, and transformers without progress bars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench import data


@pytest.fixture(scope="session")
def texts(real: Callable[..., Any]) -> dict[str, str]:
    """Return 2 MB each of prose, code and multilingual text."""
    return {kind: real(data.corpus, kind, megabytes=2).read_bytes().decode() for kind in data.KINDS}


@pytest.fixture(scope="session")
def adversarial() -> dict[str, str]:
    """Return the adversarial texts at a size that tiktoken's regex engine survives."""
    return data.adversarial(200_000)


@pytest.fixture
def quiet_transformers(one_thread: None) -> None:
    """Run torch as `one_thread` does, and transformers without progress bars."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
