"""Debian packages to plain text: the packages of each corpus, and the markup that is removed from their files.

Regular expressions remove the markup: the corpora need natural text, not a faithful rendering.
"""

from __future__ import annotations

import gzip
import html
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from bench.fetch import cached, debian_members, tar_members

SMALL = 6  # megabytes that the first list of each kind can give

# Kind -> (packages small enough for a test run, packages for a benchmark).
PACKAGES = {
    "prose": (
        ("manpages", "manpages-dev", "dict-foldoc", "postgresql-doc-15"),
        (
            *("linux-source-6.1", "python3.11-doc", "postgresql-doc-15", "cppreference-doc-en-html"),
            *("libreoffice-help-en-us", "dict-gcide", "dict-wn", "dict-foldoc", "manpages", "manpages-dev"),
        ),
    ),
    "code": (
        ("linux-libc-dev", "librust-libc-dev", "librust-regex-dev", "libpython3.11-testsuite"),
        ("linux-source-6.1",),
    ),
    "multilingual": (
        (
            *("manpages-zh", "manpages-ja", "manpages-ru", "fortunes-ru", "fortunes-zh", "dict-freedict-ara-eng"),
            *("libreoffice-help-ko", "libreoffice-help-hi"),
        ),
        (
            *("libreoffice-help-ja", "libreoffice-help-zh-cn", "libreoffice-help-ru", "libreoffice-help-ko"),
            *("libreoffice-help-hi", "manpages-zh", "manpages-ja", "manpages-ru", "manpages-de", "manpages-fr"),
            *("manpages-es", "debian-handbook", "debian-reference-ja", "debian-reference-zh-cn", "fortunes-ru"),
            *("fortunes-zh", "dict-freedict-ara-eng"),
        ),
    ),
}

_CODE_SUFFIXES = (".c", ".h", ".S", ".py", ".sh", ".rs", ".dts", ".yaml")
_HTML_SUFFIXES = (".html", ".xhtml", ".htm")
_KERNEL_SAMPLE = 12  # one source file in so many, chosen by name, gives a varied 100 MB; more megabytes take them all
_KERNEL_SAMPLE_MEGABYTES = 100

_DROPPED_ELEMENTS = re.compile(r"<(script|style|head|svg)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_BLOCK_TAG = re.compile(r"</?(?:p|div|li|tr|h\d|br|pre|dt|dd|td|th|table|ul|ol)\b[^>]*>", re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")
_ROFF_REQUEST = re.compile(r"^[.'](?:\\\".*|[A-Za-z]{1,3})[ \t]*", re.MULTILINE)
_ROFF_ESCAPE = re.compile(r"\\f(?:\[\w*\]|\(..|.)|\\[&:|^]")
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


def read_package(package: str, kind: str, megabytes: int) -> Path:
    """Return the path of one package's text, which is extracted and cached if missing.

    Args:
        package: A Debian package.
        kind: ``prose``, ``code`` or ``multilingual``: selects the files.
        megabytes: Size that the caller needs; up to 100, the kernel's source is sampled.
    """
    every_file = kind != "code" or megabytes > _KERNEL_SAMPLE_MEGABYTES
    suffix = "-all" if kind == "code" and every_file else ""

    def make(target: Path) -> None:
        seen: set[int] = set()
        with target.open("wb") as sink:
            for name, content in _files(package):
                text = _code(name, content, every_file) if kind == "code" else _prose(name, content, seen)
                sink.write(text.encode())

    return cached(f"text/{package}-{kind}{suffix}.txt", make)


def _files(package: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every file, including those of the kernel package's inner archive."""
    for name, handle in debian_members(package):
        if name.endswith(".tar.xz"):
            with tarfile.open(fileobj=handle, mode="r|xz") as inner:
                for inner_name, inner_handle in tar_members(inner):
                    if _wanted(inner_name):
                        yield inner_name, inner_handle.read()
        elif _wanted(name):
            content = handle.read()
            yield name, gzip.decompress(content) if name.endswith((".gz", ".dz")) else content


def _wanted(name: str) -> bool:
    plain = name.removesuffix(".gz")
    return (
        plain.endswith((*_CODE_SUFFIXES, *_HTML_SUFFIXES, ".dict.dz", ".rst"))
        or "/share/man/" in name
        or "/games/fortunes/" in name
        or ("/Documentation/" in name and plain.endswith(".txt"))
    )


def _code(name: str, content: bytes, every_file: bool) -> str:
    in_kernel = name.startswith("linux-source")
    sampled = every_file or not in_kernel or zlib.crc32(name.encode()) % _KERNEL_SAMPLE == 0
    if not sampled or not name.endswith(_CODE_SUFFIXES):
        return ""
    return _utf8(content)


def _prose(name: str, content: bytes, seen: set[int]) -> str:
    plain = name.removesuffix(".gz")
    if plain.endswith(_CODE_SUFFIXES):
        return ""
    text = _utf8(content)
    if plain.endswith(_HTML_SUFFIXES):
        text = _DROPPED_ELEMENTS.sub("", text)
        text = html.unescape(_TAG.sub("", _BLOCK_TAG.sub("\n", text)))
    elif "/share/man/" in name:
        text = _ROFF_ESCAPE.sub("", _ROFF_REQUEST.sub("", text)).replace("\\-", "-")
    return _without_repeats(_BLANK_LINES.sub("\n\n", text), seen)


def _without_repeats(text: str, seen: set[int]) -> str:
    """Return the text without lines of more than 20 characters that occurred before: menus, footers, licences."""
    lines = []
    for line in text.splitlines(keepends=True):
        if len(line) > 20:
            mark = zlib.crc32(line.encode()) << 32 | zlib.adler32(line.encode())
            if mark in seen:
                continue
            seen.add(mark)
        lines.append(line)
    return "".join(lines)


def _utf8(content: bytes) -> str:
    """Return the text of a UTF-8 file, ending in a newline; empty if it is binary or not UTF-8."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return ""
    return "" if "\0" in text or not text else text.rstrip("\n") + "\n"


def equal_shares(texts: list[Path], total: int) -> list[bytes]:
    """Return the start of each text, together ``total`` bytes: short texts whole, the rest shared among the long."""
    share_of: dict[Path, int] = {}
    left = total
    by_size = sorted(texts, key=lambda path: path.stat().st_size)
    for index, path in enumerate(by_size):
        share_of[path] = min(path.stat().st_size, left // (len(by_size) - index))
        left -= share_of[path]
    return [_whole_lines(path, share_of[path]) for path in texts]


def _whole_lines(path: Path, size: int) -> bytes:
    with path.open("rb") as handle:
        block = handle.read(size)
    return block[: block.rfind(b"\n") + 1]
