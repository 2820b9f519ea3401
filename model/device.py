"""Devices and dtypes by name, the threads of the CPU, and the free memory of a device."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from bpe_llama._arguments import wrong
from bpe_llama._core import shown

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Whether Triton is installed; it comes with torch for CUDA on Linux."""

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def resolve_device(device: torch.device | str = "auto") -> torch.device:
    """Return the device with this name; ``"auto"`` is CUDA if available, else the CPU.

    Raises:
        ValueError: If this machine has no such device.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if isinstance(device, bool) or not isinstance(device, str | int | torch.device):  # torch crashes on some others
        raise TypeError(wrong("device", device, "a torch.device or its name"))
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"device {shown(device)} is not known to torch; expected 'auto', 'cpu', 'cuda', 'cuda:1' …"
        ) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {str(device)!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' is not there")
    return found


def resolve_dtype(dtype: torch.dtype | str | None, auto: torch.dtype | str | None = None) -> torch.dtype:
    """Return the dtype with this name; ``"auto"`` and None are ``auto``, or float32 if ``auto`` is None.

    Raises:
        ValueError: If the name is unknown or models are not computed in this dtype.

    Example:
        >>> resolve_dtype("bfloat16"), resolve_dtype("auto", auto="float16")
        (torch.bfloat16, torch.float16)
    """
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        dtype = "float32" if auto is None else auto
    found = _DTYPES.get(str(dtype).removeprefix("torch.")) if isinstance(dtype, str | torch.dtype) else None
    if found is None:
        raise ValueError(f"dtype {shown(dtype)} is not one of 'auto', {', '.join(map(repr, _DTYPES))}")
    return found


def default_threads() -> int:
    """Return the number of threads that commands compute with: the cores that this process may use, at least 1.

    Hyper-threads of one core count once, as they share its arithmetic units; on Linux the process's affinity and the
    CPU quota of a container (cgroup v2) count. It is a rule, not a timing: a resumed run rounds as the first one.

    Example:
        >>> 1 <= default_threads() <= (os.cpu_count() or 1)
        True
    """
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return torch.get_num_threads()
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = set()
    for cpu in allowed:
        try:
            cores.add(Path(topology.format(cpu)).read_text())
        except OSError:
            cores.add(str(cpu))
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a quota ("max")
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        return max(1, min(len(cores), quota // period))
    return len(cores)


MOST_THREADS = 1024
"""The most threads that commands compute with."""


def startable_threads(threads: int) -> int:
    """Return how many of so many threads can run at once, this one included. Where one cannot, OpenMP ends the process.

    Example:
        >>> startable_threads(1)
        1
    """
    done, started = threading.Event(), []
    try:
        for _ in range(threads - 1):
            thread = threading.Thread(target=done.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError):
        pass
    finally:
        done.set()
        for thread in started:
            thread.join()
    return 1 + len(started)


@contextlib.contextmanager
def computing_threads(threads: int | None = None) -> Iterator[None]:
    """Let torch and the native kernels compute with this many threads, within a ``with`` block.

    Args:
        threads: By default torch's own number where ``OMP_NUM_THREADS`` sets it, else at most `default_threads`; as
            many as can be started, with a warning, if the system refuses some.

    Raises:
        ValueError: If it is below 1 or above 1024, or so many cannot be started.
    """
    before, asked = torch.get_num_threads(), threads
    if threads is None:
        threads = before if "OMP_NUM_THREADS" in os.environ else min(before, default_threads())
    if not 1 <= threads <= MOST_THREADS:
        bound = "at least 1" if threads < 1 else f"at most {MOST_THREADS:,}"
        raise ValueError(f"threads is {shown(threads)}; expected {bound}")
    startable = startable_threads(threads)
    if startable < threads:
        limited = f"threads is {threads}, but the system lets only {startable} run"
        if asked is not None:
            raise ValueError(f"{limited}; use fewer, or allow more (ulimit -u, the limit of the container)")
        warnings.warn(f"{limited}; computing with {startable}", stacklevel=3)
        threads = startable
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_memory(device: torch.device | str = "cpu") -> int | None:
    """Return the bytes that can be allocated on a device, or None if the system does not report it.

    On Linux the memory limit of a container (cgroup v2) counts; its page cache counts as free.

    Example:
        >>> free = free_memory()
        >>> free is None or free > 0
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    if device.type != "cpu":
        return None
    free = []
    with contextlib.suppress(OSError, ValueError):  # not Linux
        free.append(1024 * _number(Path("/proc/meminfo"), "MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        free.append(int(limit) - int(used) + _number(group / "memory.stat", "inactive_file"))
    return min(free, default=None)


def check_memory(size: int, device: torch.device | str | None, what: str, remedy: str) -> None:
    """Check that an allocation fits into a device's free memory.

    Args:
        size: Bytes.
        device: The device; torch's default device if None.
        what: What is allocated: the subject of the error message.
        remedy: How to use less memory: the end of the message.

    Raises:
        ValueError: If less is free; it names both sizes.

    Example:
        >>> check_memory(10**18, "meta", "nothing", "")  # allocates nothing
    """
    free = free_memory(torch.get_default_device() if device is None else device)
    if free is not None and size > free:
        raise ValueError(f"{what} takes {size / 1e9:.3g} GB, but {free / 1e9:.3g} GB are free; {remedy}")


def _number(path: Path, name: str) -> int:
    """Return the number after a name in a file of such lines."""
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise ValueError(f"{path} has no line {name!r}")
