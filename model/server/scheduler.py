"""The engine thread: requests of many clients share the running batch of each model.

Handlers of the server are coroutines; they call `Scheduler.generate` and read what comes. Only the engine thread
touches models and caches.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bpe_llama.model.generation.text_generator import TextGenerator

T = TypeVar("T")


class QueueFullError(RuntimeError):
    """The queue of waiting requests is full."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; retry after {retry_after} s")
        self.retry_after = retry_after


class ShuttingDownError(RuntimeError):
    """The server takes no more requests."""


@dataclass
class Update:
    """What one step added to one choice of a request. ``T`` new ids."""

    index: int
    """Which of the ``n`` choices."""
    text: str
    """New text: complete characters, stop strings held back."""
    new_ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    """One for each new id, before any option acts, where ``logprobs=True`` was asked."""
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    prompt_logprobs: list[float | None] = field(default_factory=list)
    """In the first update of a choice, where ``prompt_logprobs=True`` was asked; None for the first id."""
    prompt_top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    finish_reason: str | None = None
    """"stop", "length", or "timeout" at the deadline; None while the choice goes on."""
    num_cached_tokens: int = 0
    """Prompt tokens that the prefix cache held."""


class Scheduler:
    """Runs one engine for each model, all in one thread.

    Args:
        generators: The models by the name that clients use.
        slots: Sequences of one model that run at once.
        max_queue: Choices that may wait; beyond it `generate` raises.
        prefix_cache_bytes: Memory of the prefix cache of each model; 0 for none.
        share_prefixes: Whether requests with different ``key`` share cached prefixes.
    """

    def __init__(
        self,
        generators: Mapping[str, TextGenerator],
        *,
        slots: int = 16,
        max_queue: int = 256,
        max_length: int | None = None,
        prefill_chunk: int = 512,
        prefix_cache_bytes: int = 256 << 20,
        share_prefixes: bool = False,
    ) -> None: ...

    def start(self) -> None:
        """Start the engine thread."""

    async def generate(
        self,
        model: str,
        prompt: str | Sequence[int],
        *,
        n: int = 1,
        key: str = "",
        timeout: float | None = None,
        **options: Any,
    ) -> AsyncIterator[Update]:
        """Yield what is generated for one prompt, for all choices, as it comes.

        Closing the iterator (the client is gone) aborts the request.

        Args:
            model: A name of ``generators``.
            prompt: Text or ids.
            n: Choices; the seed of each is one more than that of the choice before.
            key: Who asks: prefixes are shared within one key.
            timeout: Seconds, after which unfinished choices end with ``finish_reason="timeout"``.
            **options: As of `TextGenerator.stream` (``stop``, ``seed``, ``logprobs``, ``json_schema`` ...).

        Raises:
            KeyError: If there is no such model.
            ValueError: If an option or the prompt is not valid; before anything is generated.
            QueueFullError: If too many choices wait.
            ShuttingDownError: If the server is about to end.
        """
        raise NotImplementedError
        yield  # pragma: no cover

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function (an embedding, an attention map) in the engine thread between two steps."""
        raise NotImplementedError

    async def shutdown(self, grace: float = 30.0) -> None:
        """Take no more requests, finish those that run within ``grace`` seconds, abort the rest, end the thread."""

    def stats(self) -> dict[str, float]:
        """Return running, waiting, generated tokens, prompt tokens, cached prompt tokens, steps, cache bytes."""
        raise NotImplementedError
