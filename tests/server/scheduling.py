"""A scheduler for one test, and what its requests answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from bpe_llama.model import TextGenerator
from bpe_llama.model.server.scheduler import Scheduler, Update

GREEDY = {"max_new_tokens": 12, "temperature": 0.0, "eos_id": ()}
SYSTEM = "You are a helpful assistant of few words, who answers in rhymes; and this is a long system prompt. "


@asynccontextmanager
async def serving(generator: TextGenerator, **options: Any) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler({"m": generator}, **options)
    scheduler.start()
    try:
        yield scheduler
    finally:
        await scheduler.shutdown(0)


def served(generator: TextGenerator, body: Callable[[Scheduler], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with serving(generator, **options) as scheduler:
            await asyncio.wait_for(body(scheduler), 300)

    asyncio.run(main())


async def read(scheduler: Scheduler, prompt: str | list[int], **options: Any) -> list[list[Update]]:
    """Return the updates of each choice."""
    choices: list[list[Update]] = [[] for _ in range(options.get("n", 1))]
    async for update in scheduler.generate("m", prompt, **options):
        choices[update.index].append(update)
    return choices


def text(updates: list[Update]) -> str:
    return "".join(update.text for update in updates)
