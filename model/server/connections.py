"""A connection that a client cannot hold by sending or reading slowly: uvicorn bounds only the time between requests.

The time of a body is bounded by `bpe_llama.model.server.security`, that of an answer by the scheduler.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from bpe_llama.model.server.config import Limits


class BoundedConnection(H11Protocol):
    """Closes a connection if the head of a request does not come, or the client does not read its answer, in time.

    The head may have 64 KiB, the limit of uvicorn's parser. What comes after an early answer, such as the rest of a
    body that is too large, has the time of a head.
    """

    limits = Limits()
    _head: asyncio.TimerHandle | None = None
    _answer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head = _cancel(self._head)
        elif not self.transport.is_closing():
            self._expect_head()

    def _expect_head(self) -> None:
        if self._head is None:  # further bytes give no more time
            self._head = self.loop.call_later(self.limits.header_seconds, self.transport.abort)

    def pause_writing(self) -> None:
        """Note that the client reads too little of its answer."""
        super().pause_writing()
        self._answer = self._answer or self.loop.call_later(self.limits.reading_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that the client reads again."""
        super().resume_writing()
        self._answer = _cancel(self._answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        super().connection_lost(exc)
        self._head, self._answer = _cancel(self._head), _cancel(self._answer)


def _cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancel a timer, and return that there is none."""
    if timer is not None:
        timer.cancel()
    return None
