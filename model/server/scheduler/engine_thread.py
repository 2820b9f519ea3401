"""The engine thread: it steps the engines of all models in turn while they have work, and sleeps otherwise.

Handlers put calls into an inbox, which the thread empties between steps. After a step the thread calls each event loop
once, whatever the number of requests. Only this thread touches models and caches.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.sampling.sequence import Sequence
from bpe_llama.model.server.scheduler.updates import (
    EngineError,
    Loop,
    ScheduledChoice,
    ScheduledRequest,
    ShuttingDownError,
    Update,
    as_exception,
)

MARGIN = 64
"""A slot that grows becomes at least this many tokens longer than its sequence."""

COUNTS = (
    *("steps", "generated_tokens", "prompt_tokens", "cached_prompt_tokens"),
    *("finished_choices", "aborted_choices", "timed_out_choices", "failed_choices", "refused_choices"),
    "engine_errors",
)
"""The totals that are counted."""


class EngineThread:
    """Runs the requests of several models.

    Args:
        engines: The engines by the names of their models, made with ``isolate_errors=True``.
        grows: Whether slots grow with their sequences, up to the model's context.
    """

    def __init__(self, engines: Mapping[str, Engine], grows: bool) -> None:
        self.engines, self.grows = engines, grows
        self.condition = threading.Condition()
        """Guards the inbox and ``unfinished``. It is notified of calls and, once ``closing``, of finished choices."""
        self.unfinished = dict.fromkeys(engines, 0)
        """Choices of each model that were submitted and are not finished."""
        self.counts = dict.fromkeys(COUNTS, 0)
        self.mean_seconds = 1.0
        """Exponential moving average of the duration of requests."""
        self.closing = False
        self._ending = self._hurried = False
        self.tasks: deque[Callable[[bool], None]] = deque()
        """Other uses of the models; one runs between two steps. Each is told whether the thread is about to end."""
        self._inbox: list[Callable[[], None]] = []
        self._outbox: dict[Loop, list[tuple[ScheduledRequest, Update | Exception | None]]] = {}
        self._choices: dict[Sequence, ScheduledChoice] = {}
        """Unfinished choices by their sequences."""
        self._thread = threading.Thread(target=self._serve, name="bpe_llama engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def post(self, call: Callable[[], None]) -> None:
        """Run a function in the thread, between two steps."""
        with self.condition:
            self._inbox.append(call)
            self.condition.notify_all()

    def post_task(self, task: Callable[[bool], None]) -> None:
        """Run a function that takes as long as a step, in turn with the steps."""
        with self.condition:
            self.tasks.append(task)
            self.condition.notify_all()

    def close(self, grace: float) -> None:
        """Wait at most ``grace`` seconds for unfinished choices, end the ones that are left, and end the thread."""
        with self.condition:
            if self._thread.is_alive():
                self.condition.wait_for(lambda: self._hurried or not any(self.unfinished.values()), grace)
            self._ending = True
            self.condition.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def hurry(self) -> None:
        """Let `close` wait no longer."""
        with self.condition:
            self._hurried = True
            self.condition.notify_all()

    def enter(self, scheduled: ScheduledRequest) -> None:
        """Add the choices of a request to their engine. This method and all below run in the thread."""
        engine = self.engines[scheduled.model]
        try:
            for choice in scheduled.choices:
                request = choice.request
                if self.grows:
                    self._grow(engine, min(request.room(engine.model), len(request.prompt) + MARGIN))
                request.sequence = engine.add_request(request.prompt, request.options, scheduled.salt)
                self._choices[request.sequence] = choice
        except BaseException as error:
            self._fail(scheduled, as_exception(error))

    def abort(self, scheduled: ScheduledRequest) -> None:
        """End a request without an update, since nobody reads it any more."""
        for choice in scheduled.choices:
            if choice.request.sequence in self._choices:
                self._drop(choice)
                self._forget(choice, "aborted_choices")

    def _serve(self) -> None:
        """Empty the inbox and step the engines until the end."""
        for name, engine in self.engines.items():  # so that the first request need not wait for it
            try:
                engine.refresh()
            except Exception:
                logging.getLogger(__name__).exception("model %r cannot be prepared", name)
        while True:
            with self.condition:
                self.condition.wait_for(lambda: self._inbox or self.tasks or self._choices or self._ending)
                calls, ending = self._inbox, self._ending
                self._inbox = []
                tasks = [self.tasks.popleft() for _ in range(len(self.tasks) if ending else min(len(self.tasks), 1))]
            try:
                for call in calls:
                    call()
                for task in tasks:
                    task(ending)
                self._end_late(math.inf if ending else time.monotonic(), ending)
                for name, engine in self.engines.items():
                    if engine.has_unfinished_requests():
                        self._step(name, engine)
            except BaseException as error:  # a bug of this module, which may affect requests of all models
                logging.getLogger(__name__).exception("the engine thread failed")
                for name in self.engines:
                    self._fail_all(name, error)
            self._send()
            if ending:
                return

    def _step(self, name: str, engine: Engine) -> None:
        """Run one step of an engine, and note what it added to each choice."""
        self.counts["steps"] += 1
        if self.grows:
            self._grow_running(engine)
        try:
            sampled = engine.step()
        except BaseException as error:  # a panic of Rust code is no Exception
            logging.getLogger(__name__).exception("a step of model %r failed", name)
            self._fail_all(name, error)
            return
        for sequence in sampled:
            if sequence in self._choices:
                self._report(self._choices[sequence], engine)

    def _grow_running(self, engine: Engine) -> None:
        """Let slots grow before a sequence fills its slot. Without memory for that, the sequence ends by "length"."""
        for sequence in engine.running:
            length = len(sequence.prompt) + len(sequence.new_ids)
            wanted = min(length + MARGIN, len(sequence.prompt) + sequence.options.max_new_tokens)
            try:
                self._grow(engine, wanted)
            except ValueError:
                return

    @staticmethod
    def _grow(engine: Engine, length: int) -> None:
        """Let slots hold at least ``length`` tokens. Slots that grow at least double, so that copies cost little."""
        context = engine.model.config.context_length
        if min(length, context) > engine.cache.capacity:
            engine.reserve(max(length, 2 * engine.cache.capacity))

    def _report(self, choice: ScheduledChoice, engine: Engine) -> None:
        """Note an update of a choice for its handler."""
        sequence, scheduled, first = choice.request.sequence, choice.scheduled, not choice.sent
        if sequence is not None and sequence.error is not None:
            self._fail(scheduled, sequence.error)
            return
        try:
            update = choice.update(engine)
        except BaseException as error:
            self._fail(scheduled, as_exception(error))
            return
        if update is None:
            return
        self.counts["generated_tokens"] += len(update.new_ids)
        if first and update.new_ids:
            self.counts["prompt_tokens"] += len(choice.request.prompt)
            self.counts["cached_prompt_tokens"] += update.num_cached_tokens
        self._note(scheduled, update)
        if choice.request.done:
            late = update.finish_reason == "timeout"
            self._forget(choice, "timed_out_choices" if late else "finished_choices")
            if not scheduled.unfinished:
                self.mean_seconds += (time.monotonic() - scheduled.begun - self.mean_seconds) / 8
                self._note(scheduled, None)

    def _end_late(self, now: float, ending: bool) -> None:
        """End the choices with a deadline in the past; when the thread ends, those without a new id by an error."""
        for choice in [choice for choice in self._choices.values() if choice.scheduled.deadline <= now]:
            sequence, engine = choice.request.sequence, self.engines[choice.scheduled.model]
            if sequence is None or sequence not in self._choices:
                continue  # another choice has ended the request
            if ending and not sequence.new_ids:
                self._fail(choice.scheduled, ShuttingDownError("the server is shutting down"))
                continue
            sequence.finish_reason = sequence.finish_reason or "timeout"
            engine.abort(sequence)
            self._report(choice, engine)

    def _fail(self, scheduled: ScheduledRequest, error: Exception) -> None:
        """End a request by an error."""
        for choice in scheduled.choices:
            if choice.request.sequence is None or choice.request.sequence in self._choices:
                self._drop(choice)
                self._forget(choice, "failed_choices")
        self._note(scheduled, error)

    def _fail_all(self, name: str, error: BaseException) -> None:
        """End all running requests of a model by an error, or the waiting ones if none runs."""
        self.counts["engine_errors"] += 1
        engine = self.engines[name]
        affected = list(engine.running or engine.waiting)
        for sequence in engine.running:
            sequence.finish_reason = "error"
        engine.running.clear()  # without `Engine.abort`, which may fail too
        engine.cache.lengths[:] = [0] * engine.cache.batch_size
        engine.reset_prefix_cache()
        for scheduled in {
            self._choices[sequence].scheduled: None for sequence in affected if sequence in self._choices
        }:
            failed = EngineError(f"a step of model {name!r} failed: {error}")
            failed.__cause__ = error
            self._fail(scheduled, failed)

    def _drop(self, choice: ScheduledChoice) -> None:
        """Take an unfinished choice out of its engine."""
        sequence = choice.request.sequence
        if sequence is not None and not sequence.finish_reason:
            self.engines[choice.scheduled.model].abort(sequence)

    def _forget(self, choice: ScheduledChoice, count: str) -> None:
        """Count a finished choice, and remove it from the unfinished ones."""
        self.counts[count] += 1
        choice.scheduled.unfinished -= 1
        if choice.request.sequence is not None:
            self._choices.pop(choice.request.sequence, None)
        with self.condition:
            self.unfinished[choice.scheduled.model] -= 1
            if self.closing:
                self.condition.notify_all()

    def _note(self, scheduled: ScheduledRequest, update: Update | Exception | None) -> None:
        self._outbox.setdefault(scheduled.loop, []).append((scheduled, update))

    def _send(self) -> None:
        """Hand updates to the event loops, by one call each; abort the requests of a loop that is closed."""
        outbox, self._outbox = self._outbox, {}
        for loop, updates in outbox.items():
            try:
                loop.call_soon_threadsafe(_deliver, updates)
            except RuntimeError:
                for scheduled, _ in updates:
                    self.abort(scheduled)


def _deliver(updates: list[tuple[ScheduledRequest, Update | Exception | None]]) -> None:
    for scheduled, update in updates:
        scheduled.updates.put_nowait(update)
