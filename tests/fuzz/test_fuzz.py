"""Random input for everything that reads bytes from outside: an error that names the fault, or an exact result.

Ordinary test runs replay the inputs under ``regressions/TARGET/`` and try a fixed few hundred mutations. ``make fuzz``
tries new ones for ``FUZZ_SECONDS`` a target, and keeps any that breaks a promise as a new regression to commit.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bpe_llama import Tokenizer

REGRESSIONS = Path(__file__).parent / "regressions"
DOCUMENTED = (ValueError, KeyError, OSError)
ORDINARY_TRIES = 300
MAX_SIZE = 4096

_TOKENIZER = Tokenizer.from_ranks(
    {**{bytes([b]): b for b in range(256)}, b"th": 256, b"the": 257, b"  ": 258, b"\xc3\xa9": 259, b"ab": 260},
    pattern="cl100k",
    special_tokens={"<|end|>": 261, "<|end|>x": 262},
)


def _encode(block: bytes, folder: Path) -> None:
    ids = _TOKENIZER.encode_bytes(block)
    assert _TOKENIZER.decode_bytes(ids) == block
    text = block.decode("utf-8", "surrogateescape")
    clean = block.decode("utf-8", "replace")
    assert _TOKENIZER.decode(_TOKENIZER.encode(text)) == text.encode("utf-8", "surrogatepass").decode(
        "utf-8", "replace"
    ) or any("\ud800" <= c <= "\udfff" for c in text)
    assert _TOKENIZER.decode(_TOKENIZER.encode(clean, allowed_special="all")) == clean
    ids, offsets = _TOKENIZER.encode_with_offsets(clean)
    assert len(ids) == len(offsets) == _TOKENIZER.count(clean)
    assert clean.startswith(_TOKENIZER.truncate(clean, max_tokens=len(ids) // 2))


def _decode(block: bytes, folder: Path) -> None:
    ids = [int.from_bytes(block[i : i + 2], "little") % 263 for i in range(0, len(block), 2)]
    stream = _TOKENIZER.decode_stream()
    assert "".join(stream.push(i) for i in ids) + stream.flush() == _TOKENIZER.decode(ids)


def _pattern(block: bytes, folder: Path) -> None:
    pattern = block[:40].decode("utf-8", "replace")
    tokenizer = Tokenizer.from_ranks({bytes([b]): b for b in range(256)}, pattern=pattern)
    text = "some Text 123 , é\n" + pattern
    assert tokenizer.decode(tokenizer.encode(text)) == text


def _file(name: str) -> Callable[[bytes, Path], None]:
    def load(block: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(block)
        tokenizer = (
            Tokenizer.from_tiktoken(path, pattern="cl100k") if name.endswith(".tiktoken") else Tokenizer.from_file(path)
        )
        text = "the thing, 12 é"
        assert tokenizer.decode(tokenizer.encode(text)) == text

    return load


def _seeds(folder: Path) -> dict[str, list[bytes]]:
    _TOKENIZER.save(folder / "tokenizer.json")
    lines = b"".join(base64.b64encode(bytes([b])) + b" %d\n" % b for b in range(256))
    header = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    entry = (5).to_bytes(8, "little") + b"a.key" + (8).to_bytes(4, "little") + (3).to_bytes(8, "little") + b"abc"
    texts = [
        "the the  ab é<|end|>x 123\r\n\t",
        "I'm 'LL ſ\u0301 日本語 👩‍👩‍👧‍👦",
        "\ud800".encode("utf-8", "surrogatepass"),
    ]
    return {
        "encode": [text if isinstance(text, bytes) else text.encode() for text in texts],
        "decode": [bytes(range(256)), b"\x05\x01" * 20],
        "pattern": [rb"\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s", rb"(?i:'s|'t)| ?[^\s\w]++", rb"(a|b)*?\1(?<=c)"],
        "tokenizer.json": [(folder / "tokenizer.json").read_bytes()],
        "vocab.tiktoken": [lines],
        "model.gguf": [header + entry],
    }


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    "encode": _encode,
    "decode": _decode,
    "pattern": _pattern,
    **{name: _file(name) for name in ("tokenizer.json", "vocab.tiktoken", "model.gguf")},
}
_NUMBERS = [
    b"\x00",
    b"\xff",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\xff" * 8,
    b"-1",
    b"4294967296",
    b"1e9",
]


def mutate(block: bytes, other: bytes, draw: random.Random) -> bytes:
    """Return ``block`` with one to four small wounds: cut, spliced, flipped, repeated or overwritten."""
    for _ in range(draw.randint(1, 4)):
        start, end = sorted(draw.choices(range(len(block) + 1), k=2))
        part = block[start:end]
        replacement = draw.choice(
            [
                b"",
                draw.randbytes(min(len(part), 8)),
                bytes(byte ^ 1 << draw.randrange(8) for byte in part[:2]) + part[2:],
                part * 2,
                draw.choice(_NUMBERS),
                other[start:end],
            ]
        )
        keep = end if draw.random() < 0.5 else min(len(block), start + len(replacement))
        block = (block[:start] + replacement + block[keep:])[: 100 * MAX_SIZE]
    return block


def _hold(target: str, block: bytes, folder: Path) -> None:
    """Run one input; what breaks a promise is kept as a regression and raised again."""
    try:
        TARGETS[target](block, folder)
    except DOCUMENTED:
        pass
    except BaseException as error:  # a Rust panic is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        kept = REGRESSIONS / target / f"{hashlib.sha256(block).hexdigest()[:16]}.bin"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(block)
        raise AssertionError(f"{type(error).__name__}: {error}; the input is kept as {kept}") from error


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_mutated_input(target: str, tmp_path: Path) -> None:
    seconds = float(os.environ.get("FUZZ_SECONDS", "0"))
    draw = random.Random(time.time_ns() if seconds else 0)
    pool = _seeds(tmp_path)[target]
    for seed in pool:
        TARGETS[target](seed, tmp_path) if target not in ("pattern", "model.gguf") else _hold(target, seed, tmp_path)
    deadline, tries = time.monotonic() + seconds, 0
    while tries < ORDINARY_TRIES or time.monotonic() < deadline:
        block = mutate(draw.choice(pool), draw.choice(pool), draw)
        _hold(target, block, tmp_path)
        if seconds and len(pool) < 1000 and draw.random() < 0.05:
            pool.append(block)  # wounds on wounds
        tries += 1


@pytest.mark.parametrize(
    "path", sorted(REGRESSIONS.glob("*/*.bin")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_regression(path: Path, tmp_path: Path) -> None:
    _hold(path.parent.name, path.read_bytes(), tmp_path)
