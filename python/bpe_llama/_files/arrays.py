"""Open `.npy` files of strangers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bpe_llama._files.read_write import PathLike, open_regular

_MAGIC = b"\x93NUMPY"


def open_array(path: PathLike) -> npt.NDArray[Any]:
    """Return the array of a `.npy` file, memory-mapped: its size is compared with the file's, and nothing is unpickled.

    Raises:
        OSError: If there is no such file.
        ValueError: If the file is no complete `.npy` file, or holds Python objects; the message names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/ids.npy", np.arange(3))
        ...     open_array(f"{folder}/ids.npy").sum()
        np.int64(3)
    """
    with open_regular(path) as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path}: not a .npy file")
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy parses the header as Python, which may fail in any way
        raise ValueError(f"{path}: not a complete .npy file: {error}") from None
    return array
