"""The values that handlers and the engine thread exchange: requests, their choices, updates and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.generation.text_request import TextRequest

Loop = asyncio.AbstractEventLoop


class QueueFullError(RuntimeError):
    """The queue of waiting requests is full.

    Attributes:
        retry_after: Seconds after which the client should try again.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; retry after {retry_after} s")
        self.retry_after = retry_after


class ShuttingDownError(RuntimeError):
    """The server takes no more requests."""


class EngineError(RuntimeError):
    """A step failed as a whole; ``__cause__`` is the error of the engine."""


def as_exception(error: BaseException) -> Exception:
    """Return an error as one that a handler raises: a panic of Rust code is no `Exception`."""
    return error if isinstance(error, Exception) else EngineError(f"the request failed: {error}")


@dataclass
class Update:
    """What one step added to one choice of a request: T new ids and their text."""

    index: int
    """The number of the choice, 0 to ``n - 1``."""
    text: str
    """New text. Incomplete characters and possible beginnings of stop strings come in a later update."""
    new_ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    """With ``logprobs=True``, one for each new id: the model's, before any option acts."""
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    prompt_logprobs: list[float | None] = field(default_factory=list)
    """With ``prompt_logprobs=True``, in the first update of a choice: one for each id, None for the first."""
    prompt_top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    finish_reason: str | None = None
    """"stop", "length", or "timeout" at the deadline; None while the choice goes on."""
    num_cached_tokens: int = 0
    """Prompt tokens that were not computed for this choice: from the prefix cache, or from an equal prompt."""

    def add(self, later: Update) -> None:
        """Append what a later step added to the choice."""
        self.text += later.text
        self.new_ids += later.new_ids
        self.logprobs += later.logprobs
        self.top_logprobs += later.top_logprobs
        self.prompt_logprobs += later.prompt_logprobs
        self.prompt_top_logprobs += later.prompt_top_logprobs
        self.finish_reason = later.finish_reason or self.finish_reason


@dataclass(eq=False)
class ScheduledChoice:
    """One continuation of a prompt, and the number of its ids that updates have reported."""

    scheduled: ScheduledRequest
    index: int
    request: TextRequest
    sent: int = 0

    def update(self, engine: Engine) -> Update | None:
        """Decode new ids; return what the last call did not return yet, None if there is nothing."""
        sequence = self.request.sequence
        assert sequence is not None  # for the type checker
        self.request.read(engine)
        first, self.sent = self.sent, len(sequence.new_ids)
        if first == self.sent and not self.request.done:
            return None
        return Update(
            self.index,
            "".join(self.request.take()),
            sequence.new_ids[first:],
            sequence.logprobs[first:],
            sequence.top_logprobs[first:],
            [] if first else sequence.prompt_logprobs,
            [] if first else sequence.prompt_top_logprobs,
            sequence.finish_reason,
            sequence.num_cached_tokens,
        )


@dataclass(eq=False)
class ScheduledRequest:
    """A request: its choices, and the event loop and queue of the handler that reads it."""

    model: str
    salt: str
    """Prefixes are shared between requests with the same salt."""
    loop: Loop
    begun: float
    deadline: float
    """In seconds of `time.monotonic`; infinite if there is none."""
    choices: list[ScheduledChoice] = field(default_factory=list)
    unfinished: int = 0
    """Choices that are not finished."""
    updates: asyncio.Queue[Update | Exception | None] = field(default_factory=asyncio.Queue)
    """Updates, then None or an error."""


class Stream(AsyncIterator[Update]):
    """The updates of one request; `abort` or `aclose` ends it early."""

    def __init__(self, scheduled: ScheduledRequest, abort: Callable[[], None]) -> None:
        self._scheduled, self._abort = scheduled, abort
        self._ended = False

    async def __anext__(self) -> Update:
        """Return the next update; a cancelled task ends the request."""
        if self._ended:
            raise StopAsyncIteration
        try:
            update = await self._scheduled.updates.get()
        except BaseException:
            self.abort()
            raise
        if isinstance(update, Update):
            return update
        self._ended = True
        raise StopAsyncIteration if update is None else update

    def abort(self) -> None:
        """End the request, if it has not ended."""
        if not self._ended:
            self._ended = True
            self._abort()

    async def aclose(self) -> None:
        """End the request, if it has not ended."""
        self.abort()
