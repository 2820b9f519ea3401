"""From the names of devices and number formats to torch's own, with clear errors."""

from __future__ import annotations

import torch

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
