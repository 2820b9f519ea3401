"""Makes the batches of the next steps in a worker thread, so that a step does not wait for them.

Where no thread can be started, as in a container with too few, each step makes its batches.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time

from bpe_llama.model.training.data.batches import Batch, Batches

_POLL = 0.1  # seconds between checks for an interrupt


class Prefetch:
    """The batches of consecutive steps, made in a worker thread in order, the same as without it.

    Attributes:
        waited: Seconds that `take` waited, in sum.
    """

    def __init__(self, batches: Batches, indices: range, depth: int = 4) -> None:
        """Begin to make the batches with these indices, at most `depth + 1` of them before they are taken."""
        self.waited = 0.0
        self._made: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self._room = threading.Semaphore(depth + 1)
        self._closed = False
        self._batches, self._indices = batches, iter(indices)
        self._worker = threading.Thread(target=self._make, name="prefetch", daemon=True)
        try:
            self._worker.start()
            self._has_worker = True
        except RuntimeError:
            self._has_worker = False

    def take(self, count: int, interrupted: threading.Event | None = None) -> list[Batch]:
        """Return the next `count` batches, fewer if the run is interrupted; raise what the data raised."""
        began = time.perf_counter()
        taken: list[Batch] = []
        while len(taken) < count and not (interrupted is not None and interrupted.is_set()):
            if not self._has_worker:
                for index in itertools.islice(self._indices, 1):
                    self._add(index)
            try:
                made = self._made.get(timeout=_POLL)
            except queue.Empty:
                if not self._worker.is_alive() and self._made.empty():
                    raise ValueError("all batches of the run were taken") from None
                continue
            if isinstance(made, BaseException):
                raise made
            taken.append(made)
            self._room.release()
        self.waited += time.perf_counter() - began
        return taken

    def close(self) -> None:
        """End the worker; data that block for more than a second are left to a daemon thread."""
        self._closed = True
        self._room.release()
        if self._has_worker:
            self._worker.join(timeout=1)

    def _make(self) -> None:
        for index in self._indices:
            self._room.acquire()
            if self._closed or not self._add(index):
                return

    def _add(self, index: int) -> bool:
        """Return whether the data made this batch; what they raised is put in its place."""
        try:
            self._made.put(self._batches.batch(index))
        except BaseException as error:
            self._made.put(error)
            return False
        return True
