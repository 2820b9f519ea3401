"""Hold Ctrl-C back for a moment, so that it leaves no temporary files."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Hold a Ctrl-C back until the end of the block, where it acts as usual; the block takes milliseconds at most.

    Python runs handlers of signals in the main thread alone, so other threads need nothing.

    Example:
        >>> try:
        ...     with ctrl_c_waits():
        ...         signal.raise_signal(signal.SIGINT)
        ...         print("all of the block")
        ... except KeyboardInterrupt:
        ...     print("interrupted")
        all of the block
        interrupted
    """
    before = signal.getsignal(signal.SIGINT)
    # None is a handler that C code installed; Python cannot install it again.
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    came = threading.Event()
    signal.signal(signal.SIGINT, lambda number, frame: came.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came.is_set():
            signal.raise_signal(signal.SIGINT)
