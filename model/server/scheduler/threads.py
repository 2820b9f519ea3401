"""Threads for compiling schemas and grammars, which may take seconds and cannot be interrupted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from bpe_llama.model.sampling.constraint import ConstraintError

T = TypeVar("T")


class CompileThreads:
    """Threads for compiling schemas and grammars, which may take seconds and cannot be interrupted.

    A slow grammar delays other grammars only, and not the end of the program.

    Args:
        threads: Functions that run at once.
        seconds: The time of a function, including the wait for a thread.
    """

    def __init__(self, threads: int, seconds: float) -> None:
        self.threads, self.seconds = threads, seconds
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def start(self) -> None:
        """Start the threads."""
        for _ in range(self.threads):
            threading.Thread(target=self._work, name="bpe_llama grammars", daemon=True).start()

    def close(self) -> None:
        """End the threads once they are free."""
        for _ in range(self.threads):
            self._queue.put(None)

    async def run(self, function: Callable[[], T]) -> T:
        """Return the result of a function. If the caller is cancelled before the function begins, it never does.

        Raises:
            ConstraintError: If the time is over; the function then runs on, its result is dropped.
            Exception: Any error that the function raises.
        """
        future: Future[T] = Future()
        self._queue.put((future, function))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.seconds)
        except asyncio.TimeoutError:
            raise ConstraintError(f"the schema or grammar was not compiled within {self.seconds:g} s") from None

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            future, function = entry
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
