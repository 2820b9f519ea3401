"""Calls in other threads, which the event loop does not wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function returns in another thread, or in this one if no thread can be started.

    A function that itself fails to start a thread is called again, in this thread.
    """
    try:
        return await asyncio.to_thread(function, *arguments)
    except RuntimeError as error:
        if str(error) != "can't start new thread":
            raise
        return function(*arguments)
