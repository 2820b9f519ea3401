"""The inputs that fuzzing has found to reach new code, a zip file a target: ``corpora/TARGET.zip``.

``python tests/fuzz/corpus.py unpack TARGET`` puts them where the next run begins, under ``rust/fuzz/corpus``; `make
fuzz-all` does so. ``pack TARGET FOLDER`` stores the smallest of a folder, such as libFuzzer's ``-set_cover_merge=1``
makes. All files together stay below 200 kB.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

CORPORA = Path(__file__).parent / "corpora"
UNPACKED = Path(__file__).parents[2] / "rust" / "fuzz" / "corpus"
MOST = 8_000
"""Bytes of one target's zip file, about."""


def pack(target: str, folder: Path) -> None:
    """Store the smallest inputs of a folder, as many as there is room for."""
    CORPORA.mkdir(exist_ok=True)
    size = 0
    with zipfile.ZipFile(CORPORA / f"{target}.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
            entry = zipfile.ZipInfo(path.name[:12])  # of the same time always: the same inputs give the same file
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, path.read_bytes())
            size += entry.compress_size + 2 * len(entry.filename) + 76  # with the headers of an entry
            if size > MOST:
                break


def unpack(target: str) -> None:
    """Write the inputs of a target to its folder, which may hold others."""
    folder = UNPACKED / target
    folder.mkdir(parents=True, exist_ok=True)
    if (CORPORA / f"{target}.zip").exists():
        with zipfile.ZipFile(CORPORA / f"{target}.zip") as file:
            file.extractall(folder)


if __name__ == "__main__":
    if sys.argv[1] == "pack":
        pack(sys.argv[2], Path(sys.argv[3]))
    else:
        unpack(sys.argv[2])
