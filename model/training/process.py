"""What a run changes in its process while it lasts: the handlers of Ctrl-C and SIGTERM, and how malloc keeps memory."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


@contextlib.contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets; a second signal acts as usual.

    Only the main thread may handle signals; in other threads the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            # None is a handler that C code installed; Python cannot install it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def stop(number: int, frame: FrameType | None) -> None:
        event.set()
        restore()

    for number in _SIGNALS:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        restore()


def keep_freed_memory() -> None:
    """Let malloc keep the memory that a step freed for the next step, which allocates the same sizes again.

    By default glibc returns each block of 32 MiB, and the end of its heap, to the system as soon as they are free. The
    next step then gets new pages, which the system fills with zeros when they are touched first: at 15M parameters, a
    vocabulary of 49k and bfloat16 a quarter of the CPU time of a step. Without glibc nothing is done.

    Source: mallopt(3).
    """
    _set_malloc_options({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1})


def return_freed_memory() -> None:
    """Return freed memory to the system, and set the thresholds that glibc ends with in a program of large tensors."""
    _set_malloc_options({_M_MMAP_MAX: 65_536, _M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 64 << 20}, trim=True)


def _set_malloc_options(values: dict[int, int], *, trim: bool = False) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library; Windows
        libc = ctypes.CDLL(None)
        for option, value in values.items():
            libc.mallopt(option, value)
        if trim:
            libc.malloc_trim(0)
