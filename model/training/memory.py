"""Keeps the memory that a step freed for the next step, which allocates the same sizes again."""

from __future__ import annotations

import contextlib
import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


def keep_freed_memory() -> None:
    """Let malloc keep freed memory in this process instead of returning it to the system.

    By default glibc returns each block of 32 MiB, and the end of its heap, as soon as they are free. The next step then
    gets new pages, which the system fills with zeros when they are touched first: at 15M parameters, a vocabulary of
    49k and bfloat16 a quarter of the CPU time of a step. Without glibc nothing is done.

    Source: mallopt(3).
    """
    _set_options({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1})


def return_freed_memory() -> None:
    """Return freed memory to the system, and set the thresholds that glibc ends with in a program of large tensors."""
    _set_options({_M_MMAP_MAX: 65_536, _M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 64 << 20})
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _set_options(values: dict[int, int]) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library; Windows
        set_option = ctypes.CDLL(None).mallopt
        for option, value in values.items():
            set_option(option, value)
