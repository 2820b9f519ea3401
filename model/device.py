"""From the names of devices and number formats to torch's own, with clear errors."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Whether kernels can be launched on CUDA: Triton comes with torch for CUDA on Linux."""

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def resolve_device(device: torch.device | str = "auto") -> torch.device:
    """Return the device of that name; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: If there is no such device on this machine.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device {device!r} is not known to torch; expected 'auto', 'cpu', 'cuda', 'cuda:1' …"
        ) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {str(device)!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' is not there")
    return found


def resolve_dtype(dtype: torch.dtype | str | None, auto: torch.dtype | str | None = None) -> torch.dtype:
    """Return the number format of that name; ``"auto"`` or None gives ``auto``, and float32 failing that.

    Raises:
        ValueError: If the name is unknown or the format is not one weights are computed in.

    Example:
        >>> resolve_dtype("bfloat16"), resolve_dtype("auto", auto="float16")
        (torch.bfloat16, torch.float16)
    """
    if dtype is None or dtype == "auto":
        dtype = "float32" if auto is None else auto
    found = _DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"dtype {dtype!r} is not one of 'auto', {', '.join(map(repr, _DTYPES))}")
    return found


def free_memory(device: torch.device | str = "cpu") -> int | None:
    """Return the bytes that can still be taken on a device, or None where the system does not say.

    On Linux a container's limit counts, and what files hold of its memory does not.

    Example:
        >>> free = free_memory()
        >>> free is None or free > 0
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type != "cpu":
        return None
    free = _kilobytes(Path("/proc/meminfo"), "MemAvailable:")
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        left = int(limit) - int(used) + _number(group / "memory.stat", "inactive_file")
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return None if free is None else 1024 * free
    return left if free is None else min(left, 1024 * free)


def check_memory(size: int, device: torch.device | str | None, what: str, remedy: str) -> None:
    """Refuse what would not fit.

    Args:
        size: Bytes about to be taken.
        device: Where.
        what: That takes them, as the subject of the message.
        remedy: What takes less.

    Raises:
        ValueError: If fewer are free; it says how many of each.

    Example:
        >>> check_memory(10**18, "meta", "nothing", "")  # allocates nothing
    """
    free = free_memory(torch.get_default_device() if device is None else device)
    if free is not None and size > free:
        raise ValueError(f"{what} takes {size / 1e9:.3g} GB, but {free / 1e9:.3g} GB are free; {remedy}")


def _kilobytes(path: Path, name: str) -> int | None:
    try:
        return _number(path, name)
    except (OSError, ValueError):
        return None


def _number(path: Path, name: str) -> int:
    """Return the number after a name in a file of lines of them."""
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise ValueError(f"{path} has no line {name!r}")
