"""Runs the prompts of one request on the scheduler, and collects or streams their updates."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.server.api.errors import as_api_error
from bpe_llama.model.server.api.schemas import Sampling
from bpe_llama.model.server.config import ServerConfig
from bpe_llama.model.server.metrics import Metrics
from bpe_llama.model.server.scheduler import Scheduler, Stream, Update
from bpe_llama.playground.errors import ApiError, bad, not_found

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client has disconnected."""


@dataclass
class Service:
    """What all endpoints use: the models, the settings and the counters."""

    scheduler: Scheduler
    config: ServerConfig
    metrics: Metrics
    grace: float = 30.0
    """Seconds that running requests have once the server shuts down."""
    created: int = field(default_factory=lambda: int(time.time()))
    closing: asyncio.Future[None] = field(init=False)
    """Done once the server shuts down."""
    _ending: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Start the scheduler; called by the event loop of the server."""
        self.closing = asyncio.get_running_loop().create_future()
        self.scheduler.start()

    async def end(self) -> None:
        """Shut the scheduler down; a second call waits for the first."""
        if self._ending is None:
            self.closing.set_result(None)
            self._ending = asyncio.ensure_future(self.scheduler.shutdown(self.grace))
        await self._ending

    @property
    def generators(self) -> Mapping[str, TextGenerator]:
        """Return the models by name; the first one is the default."""
        return self.scheduler.generators

    def find(self, name: str | None) -> tuple[str, TextGenerator]:
        """Return the name and the model that a request asks for; the default model for None.

        Raises:
            ApiError: 404 if there is no model of this name.
        """
        name = next(iter(self.generators)) if name is None else name
        if name not in self.generators:
            raise not_found("model", name, self.generators)
        return name, self.generators[name]


@dataclass
class Job:
    """The prompts of one request and their options."""

    model: str
    generator: TextGenerator
    prompts: list[str | list[int]]
    ids: list[list[int]]
    """The ids of each prompt."""
    options: dict[str, Any]
    n: int = 1
    param: str = "prompt"
    """The field of the request that holds the prompts, which errors name."""
    constraint: str = "response_format"
    """The field that holds the schema or grammar of the answer."""
    continues: bool = False
    """Whether the answer continues the text of ids, such as the last message of a chat."""

    @property
    def end_ids(self) -> Collection[int]:
        """Return the ids that end an answer."""
        return self.options.get("eos_id", self.generator.end_ids)

    def api_error(self, error: Exception) -> ApiError:
        """Return the answer for an error of the scheduler, which names the field at fault.

        Errors of options begin with the option's name, which is the field's.
        """
        name = str(error).partition(" ")[0]
        is_option = name in self.options and name in Sampling.model_fields
        return as_api_error(error, name if is_option else self.param, self.constraint)

    def check_room(self, room: int) -> None:
        """Set ``max_new_tokens`` to at most the tokens that the shortest prompt leaves.

        Args:
            room: The most tokens that a sequence may have, prompt included.

        Raises:
            ApiError: If a prompt leaves no room for a new token, or ``min_new_tokens`` exceeds ``max_new_tokens``.
        """
        longest = max(map(len, self.ids))
        if longest >= room:
            message = (
                f"{self.param} has {longest:,} tokens; expected at most {room - 1:,}, which leave room for one more"
            )
            raise bad(message, self.param, "context_length_exceeded")
        most = room - min(map(len, self.ids))
        if "max_new_tokens" not in self.options:
            self.options["max_new_tokens"] = self._limit_of_file(longest, most)
        self.options["max_new_tokens"] = min(self.options["max_new_tokens"], most)
        least = self.options.get("min_new_tokens", 0)
        if least > self.options["max_new_tokens"]:
            message = f"min_tokens is {least}; expected at most the {self.options['max_new_tokens']} new tokens"
            raise bad(message, "min_tokens")

    def _limit_of_file(self, longest: int, most: int) -> int:
        """Return the new tokens that the model's ``generation_config.json`` allows; ``most`` if it says nothing."""
        config = self.generator.model.generation_config
        if config.max_length is None and config.values.get("max_new_tokens") is None:
            return most
        try:
            return GenerationOptions.for_model(self.generator.model, longest).max_new_tokens
        except ValueError as error:
            raise bad(str(error), self.param) from None


class Generation:
    """The running prompts of one request: `start` it, iterate over its updates, `close` it.

    Args:
        service: The models, settings and counters.
        job: The prompts to run.
        http: The client's request, which tells when the client disconnects.
    """

    def __init__(self, service: Service, job: Job, http: Request) -> None:
        self.service, self.job, self.http = service, job, http
        self.completion_tokens = 0
        self.cached_tokens = 0
        self._started = time.perf_counter()
        self._streams: list[Stream] = []

    async def start(self) -> None:
        """Queue the prompts. Called before the first byte of an answer, so that a refusal can set the HTTP status.

        Raises:
            ApiError: If the scheduler refuses the request.
        """
        try:
            for prompt in self.job.prompts:
                self._streams.append(
                    await self.service.scheduler.submit(
                        self.job.model,
                        prompt,
                        n=self.job.n,
                        key=getattr(self.http.state, "key", ""),
                        timeout=self.service.config.timeout,
                        continues=self.job.continues,
                        **self.job.options,
                    )
                )
        except Exception as error:
            self.close()
            raise self.job.api_error(error) from error
        except BaseException:
            self.close()
            raise

    async def __aiter__(self) -> AsyncIterator[tuple[int, Update]]:
        """Yield each update with the number of its choice, counted over all prompts: ``prompt * n + choice``.

        Raises:
            ApiError: If the request fails; 408 if it takes longer than ``timeout``.
        """
        seen: set[int] = set()
        metrics, model = self.service.metrics, self.job.model
        async for number, update in self._merged():
            if number not in seen:
                if not seen:
                    metrics.first_token(model, time.perf_counter() - self._started)
                    metrics.prompt_tokens(model, sum(map(len, self.job.ids)))
                seen.add(number)
                if number % self.job.n == 0:
                    self.cached_tokens += update.num_cached_tokens
                    metrics.cached_tokens(model, update.num_cached_tokens)
            self.completion_tokens += len(update.new_ids)
            metrics.completion_tokens(model, len(update.new_ids))
            if update.finish_reason == "timeout":
                if not self.service.closing.done():
                    raise ApiError(408, f"the request took over {self.service.config.timeout:g} s", code="timeout")
                update.finish_reason = "length"  # the server shuts down: the client gets the text so far
            yield number, update

    async def collect(self) -> list[Update]:
        """Start, and return all choices once they are complete: the sum of the updates of each.

        Raises:
            ApiError: See `start`; also if the request fails or takes too long.
            ClientGoneError: If the client disconnects before.
        """
        choices = [Update(number % self.job.n, "", []) for number in range(len(self.job.prompts) * self.job.n)]

        async def read() -> None:
            async for number, update in self:
                choices[number].add(update)

        try:
            await self.start()
            await unless_gone(self.http, read())
        finally:
            self.close()
        return choices

    def close(self) -> None:
        """End the request: abort the choices that still run."""
        for stream in self._streams:
            stream.abort()

    @property
    def usage(self) -> dict[str, Any]:
        """Return the numbers of tokens so far, as ``usage`` of the chat and completions endpoints."""
        prompt = sum(map(len, self.job.ids))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    async def _merged(self) -> AsyncIterator[tuple[int, Update]]:
        """Yield the updates of all prompts as they come, each with the number of its choice."""
        if len(self._streams) == 1:
            try:
                async for update in self._streams[0]:
                    yield update.index, update
            except Exception as error:
                raise self.job.api_error(error) from error
            return
        queue: asyncio.Queue[tuple[int, Update] | Exception | None] = asyncio.Queue()
        tasks = [asyncio.create_task(self._read(place, queue)) for place in range(len(self._streams))]
        try:
            running = len(tasks)
            while running:
                found = await queue.get()
                if found is None:
                    running -= 1
                elif isinstance(found, Exception):
                    raise self.job.api_error(found) from found
                else:
                    yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, place: int, queue: asyncio.Queue[tuple[int, Update] | Exception | None]) -> None:
        try:
            async for update in self._streams[place]:
                queue.put_nowait((place * self.job.n + update.index, update))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)


async def unless_gone(http: Request, wanted: Awaitable[T]) -> T:
    """Return the result of an awaitable, which is cancelled if the client disconnects first.

    Raises:
        ClientGoneError: If the client disconnects first.
    """
    task = asyncio.ensure_future(wanted)
    gone = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
    if task.cancelled():
        raise ClientGoneError
    return task.result()


async def _disconnected(http: Request) -> None:
    """Return once the client has disconnected."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def new_id(prefix: str) -> str:
    """Return a new random id with a prefix, such as ``chatcmpl-``."""
    return f"{prefix}{uuid.uuid4().hex}"
