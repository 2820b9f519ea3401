"""The scheduler: requests of many clients share the running batch of each model.

Handlers of the server are coroutines. They call `Scheduler.submit` or `Scheduler.generate` and read updates. The code
of the engine thread is in `engine_thread.py`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from bpe_llama._arguments import integer, number
from bpe_llama._core import shown
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.generation.prompts import checked_prompts
from bpe_llama.model.generation.structured import structured_options
from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.server.scheduler.engine_thread import EngineThread
from bpe_llama.model.server.scheduler.memory import first_length
from bpe_llama.model.server.scheduler.threads import CompileThreads
from bpe_llama.model.server.scheduler.updates import (
    QueueFullError,
    ScheduledChoice,
    ScheduledRequest,
    ShuttingDownError,
    Stream,
    Update,
    as_exception,
)
from bpe_llama.playground.threads import in_thread

T = TypeVar("T")


class Scheduler:
    """Runs one engine for each model, all in one thread.

    If sampling fails for one request (NaN in its logits, an error in a logits processor), that request alone ends, with
    that error. If a step fails as a whole, all running requests of its model end with an `EngineError`, and the thread
    goes on.

    The prefix cache is on for all dtypes, as in vLLM. In float32 the ids of a request do not depend on what is cached.
    With fewer bits they may: the rounding of keys depends on how a text is split into passes, and on the batch.

    Args:
        generators: The models by the names that clients use.
        slots: Sequences of one model that run at once.
        max_queue: Choices that may wait; if more would, `generate` raises a `QueueFullError`.
        max_length: Tokens of a slot, prompt included, allocated at the start. None is the model's context; slots then
            grow with their sequences, and if memory runs short, a sequence ends by "length".
        prefill_chunk: Prompt tokens of a step at most: a bound on how long prompts delay running sequences.
        prefix_cache_bytes: Memory of the prefix cache of each model; 0 for none.
        cache: The form of the KV cache, as of `Engine`; ``"ring"`` needs ``prefix_cache_bytes=0``.
        share_prefixes: Whether requests with different ``key`` share cached prefixes.
        compile_seconds: The time in which the schema or grammar of a request must be compiled.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If there is no model, a size is out of range, or there is too little memory; it names the model.

    Example:
        >>> scheduler = Scheduler({"small": generator})  # doctest: +SKIP
        >>> scheduler.start()  # doctest: +SKIP
        >>> async for update in scheduler.generate("small", "Once upon a time"):  # doctest: +SKIP
        ...     print(update.text, end="")
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
        cache: str = "full",
        compile_seconds: float = 10.0,
    ) -> None:
        slots, max_queue = integer("slots", slots, 1), integer("max_queue", max_queue, 0)
        self.generators = dict(generators)
        if not self.generators:
            raise ValueError("generators is {}; expected at least one model")
        if not number("compile_seconds", compile_seconds) > 0:
            raise ValueError(f"compile_seconds is {shown(compile_seconds)}; expected above 0")
        self.slots, self.max_queue, self.max_length = slots, max_queue, max_length
        self.share_prefixes = share_prefixes
        engines: dict[str, Engine] = {}
        for name, generator in self.generators.items():
            length = first_length(generator.model.config, max_length)
            try:
                engines[name] = Engine(
                    generator.model,
                    slots,
                    length,
                    prefill_chunk,
                    cache,
                    prefix_cache_bytes=prefix_cache_bytes,
                    isolate_errors=True,
                )
            except ValueError as error:
                raise ValueError(f"model {name!r}: {error}") from error
        self._thread = EngineThread(engines, grows=max_length is None)
        self._compiling = CompileThreads(2, compile_seconds)
        self._started = False

    def start(self) -> None:
        """Start the engine thread, and the ones that compile grammars; a second call does nothing.

        Raises:
            RuntimeError: If no thread can be started.
        """
        if not self._started:
            self._started = True
            self._thread.start()
            try:
                self._compiling.start()
            except RuntimeError:
                self._compiling.close()
                self._thread.close(0)
                raise

    def context(self, model: str) -> int:
        """Return the most tokens that a sequence of a model may have, prompt included."""
        return self.max_length or self.generators[model].model.config.context_length

    async def submit(
        self,
        model: str,
        prompt: str | Sequence[int],
        *,
        n: int = 1,
        key: str = "",
        timeout: float | None = None,
        continues: bool = False,
        **options: Any,
    ) -> Stream:
        """Check a request, queue it, and return its updates; arguments and errors are those of `generate`.

        A request that is not read to its end must be ended by `Stream.abort`.
        """
        generator = self.generators[model]
        n = integer("n", n)
        if not 1 <= n <= self.slots + self.max_queue:
            raise ValueError(f"n is {shown(n)}; expected 1 to {self.slots + self.max_queue} (slots and places to wait)")
        if timeout is not None and not number("timeout", timeout) > 0:
            raise ValueError(f"timeout is {shown(timeout)}; expected above 0 seconds")
        self._check_open(model, n)  # before any work
        now = time.monotonic()
        deadline = math.inf if timeout is None else now + timeout
        scheduled = ScheduledRequest(
            model, "" if self.share_prefixes else key, asyncio.get_running_loop(), now, deadline, unfinished=n
        )
        run = self._compiling.run if structured_options(options) else in_thread  # compiling may take seconds
        scheduled.choices += await run(partial(self._choices, scheduled, generator, prompt, n, continues, options))
        with self._thread.condition:
            self._check_open(model, n)
            self._thread.unfinished[model] += n
            self._thread.post(lambda: self._thread.enter(scheduled))
        return Stream(scheduled, lambda: self._thread.post(lambda: self._thread.abort(scheduled)))

    async def generate(
        self,
        model: str,
        prompt: str | Sequence[int],
        *,
        n: int = 1,
        key: str = "",
        timeout: float | None = None,
        continues: bool = False,
        **options: Any,
    ) -> AsyncIterator[Update]:
        """Yield an update for each step of each choice of one prompt.

        Closing the iterator aborts the request, for example when the client disconnects.

        Args:
            model: A name of ``generators``.
            prompt: Text or ids.
            n: Choices; the seed of each is one more than that of the choice before. They share one prefill.
            key: Identifies the client: requests with the same key share cached prefixes.
            timeout: Seconds, after which unfinished choices end with ``finish_reason="timeout"``.
            continues: Whether the text of an answer to ids begins within a text, so that it keeps its first space.
            **options: As of `TextGenerator.stream` (``stop``, ``seed``, ``logprobs``, ``json_schema`` ...).

        Raises:
            KeyError: If there is no such model.
            ValueError: If the value of an option or the prompt is not valid. It is raised before anything is generated.
            TypeError: If the type of an option or the prompt is not valid; likewise.
            QueueFullError: If too many choices wait.
            ShuttingDownError: If the server shuts down.
            EngineError: If a step fails as a whole.
            Exception: Any error that sampling for this request raises.
        """
        stream = await self.submit(model, prompt, n=n, key=key, timeout=timeout, continues=continues, **options)
        try:
            async for update in stream:
                yield update
        finally:
            stream.abort()

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function (an embedding, an attention map) in the engine thread between two steps, one after each step.

        Raises:
            QueueFullError: If over ``max_queue`` functions wait.
            ShuttingDownError: If the server shuts down.
            Exception: Any error that the function raises.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def call(ending: bool) -> None:
            answer: Callable[[], None]
            if future.cancelled():  # nobody waits any more
                return
            try:
                if ending:
                    raise ShuttingDownError("the server is shutting down")
                result = function()
                answer = lambda: None if future.done() else future.set_result(result)  # noqa: E731
            except BaseException as error:
                failure = as_exception(error)
                answer = lambda: None if future.done() else future.set_exception(failure)  # noqa: E731
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(answer)

        with self._thread.condition:
            if self._thread.closing:
                raise ShuttingDownError("the server is shutting down")
            if len(self._thread.tasks) > self.max_queue:
                raise QueueFullError(1)
            self._thread.post_task(call)
        return await future

    async def shutdown(self, grace: float = 30.0) -> None:
        """Refuse new requests, let the others end within ``grace`` seconds, abort the rest, and end the thread.

        Aborted choices end with ``finish_reason="timeout"``. Requests that still wait end with a `ShuttingDownError`.
        """
        self._thread.closing = True
        self._compiling.close()
        await in_thread(self._thread.close, grace)

    def hurry(self) -> None:
        """Let a `shutdown` that waits go on at once."""
        self._thread.hurry()

    def stats(self) -> dict[str, float]:
        """Return figures, summed over all models.

        | key | what |
        |---|---|
        | `running`, `waiting` | choices with a slot, and without one |
        | `unfinished` | choices that were submitted and are not finished |
        | `steps`, `generated_tokens`, `prompt_tokens`, `cached_prompt_tokens` | totals |
        | `prefilled_tokens` | prompt tokens computed, a total |
        | `finished_choices`, `aborted_choices`, `timed_out_choices`, `failed_choices`, `refused_choices` | totals |
        | `engine_errors` | steps that failed as a whole, a total |
        | `cache_bytes`, `max_cache_bytes` | memory of the prefix caches: in use, and at most |
        | `slot_bytes` | memory of the slots |
        """
        engines = self._thread.engines.values()
        caches = [engine.prefixes.blocks for engine in engines if engine.prefixes.blocks]
        return {
            "running": sum(len(engine.running) for engine in engines),
            "waiting": sum(len(engine.waiting) for engine in engines),
            "unfinished": sum(self._thread.unfinished.values()),
            **self._thread.counts,
            "prefilled_tokens": sum(engine.num_prefilled_tokens for engine in engines),
            "cache_bytes": sum(cache.nbytes for cache in caches),
            "max_cache_bytes": sum(cache.max_bytes for cache in caches),
            "slot_bytes": sum(store.nbytes for engine in engines for store in engine.cache.stores),
        }

    def _choices(
        self,
        scheduled: ScheduledRequest,
        generator: TextGenerator,
        prompt: str | Sequence[int],
        n: int,
        continues: bool,
        options: dict[str, Any],
    ) -> list[ScheduledChoice]:
        """Return the checked choices of a request."""
        vocab_size = generator.model.config.vocab_size
        request = partial(generator.request, prompt, continues=continues)
        first = request(options=options)
        checked_prompts([first.prompt], self.context(scheduled.model))
        outside = next((token_id for token_id in first.prompt if not 0 <= token_id < vocab_size), None)
        if outside is not None:
            raise ValueError(f"the prompt has input id {outside}, outside the vocabulary of {vocab_size}")
        seeds = range((first.options.seed or 0) + 1, (first.options.seed or 0) + n)
        requests = [first, *(request(options=options | {"seed": seed}) for seed in seeds)]
        return [ScheduledChoice(scheduled, index, each) for index, each in enumerate(requests)]

    def _check_open(self, model: str, n: int) -> None:
        """Raise a ShuttingDownError or QueueFullError if ``n`` more choices of a model cannot be taken."""
        if self._thread.closing:
            raise ShuttingDownError("the server is shutting down")
        taken = self._thread.unfinished | {model: self._thread.unfinished[model] + n}
        waiting = sum(max(choices - self.slots, 0) for choices in taken.values())
        if waiting > self.max_queue:
            self._thread.counts["refused_choices"] += n
            seconds = self._thread.mean_seconds * waiting / self.slots
            raise QueueFullError(min(max(math.ceil(seconds), 1), 60))
