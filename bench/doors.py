"""Other tools' interfaces over our tokenizer, against those tools: ``python -m bench.doors``.

The same text in the same process, in turns. Ids are compared before anything is timed. The table goes to
bench/results/doors.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from bench import data, measure
from bench.published import PUBLISHED
from bpe_llama import Tokenizer

DOCUMENT = 4000  # characters of a text of the batch
HEAD = """# Other tools' interfaces over our tokenizer

`python -m bench.doors` on {machine}.
{versions}. Best of {rounds} rounds in turns; millions of UTF-8 bytes a second of processor time, all threads together.
"""


class Row(NamedTuple):
    """A job through three interfaces: the tool itself, our object in its place, our own method."""

    job: str
    peer: Callable[[], Any]
    door: Callable[[], Any]
    own: Callable[[], Any]


def main() -> None:
    """Print the table and write it."""
    parser = measure.parser(__doc__)
    parser.add_argument("--vocabulary", nargs="*", choices=["cl100k", "o200k"], default=["cl100k", "o200k"])
    parser.add_argument("--megabytes", type=int, default=2, help="of prose")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="of a batch")
    options = parser.parse_args()
    text = data.corpus("prose", megabytes=options.megabytes).read_bytes().decode()
    size = len(text.encode()) / 1e6
    lines = [
        "| job | tiktoken, MB/s | as_tiktoken, MB/s | our own call, MB/s | against tiktoken | time over our own call |",
        "|---|---|---|---|---|---|",
    ]
    for row in (row for name in options.vocabulary for row in tiktoken_rows(name, text, options.threads)):
        expected = row.peer()
        for name, call in (("as_tiktoken", row.door), ("ours", row.own)):
            if call() != expected:
                raise SystemExit(f"{row.job}: {name} differs from tiktoken")
        del expected
        timings = measure.interleaved(
            {"peer": row.peer, "door": row.door, "own": row.own}, options.rounds, clock=time.process_time
        )
        peer, door, own = (timings[name].best for name in ("peer", "door", "own"))
        lines.append(
            f"| {row.job} | {size / peer:.1f} | {size / door:.1f} | {size / own:.1f} | {peer / door:.1f}x "
            f"| {door / own - 1:+.0%} |"
        )
        print(lines[-1], flush=True)
    versions = ", ".join(f"{name} {version}" for name, version in measure.versions("bpe-llama", "tiktoken").items())
    head = HEAD.format(machine=measure.machine()["processor"], versions=versions, rounds=options.rounds)
    path = measure.RESULTS / "doors.md"
    path.write_text("\n".join([head, *lines, ""]), "utf-8")
    print(f"written to {path}")


def tiktoken_rows(vocabulary: str, text: str, threads: int) -> list[Row]:
    """Return the jobs of `tiktoken.Encoding`."""
    published = PUBLISHED[vocabulary]
    tok, peer = Tokenizer.from_file(published.path), published.as_tiktoken()
    door = tok.as_tiktoken()
    texts = [text[start : start + DOCUMENT] for start in range(0, len(text), DOCUMENT)]
    lines = text.splitlines(keepends=True)
    ids = peer.encode_ordinary(text)
    return [
        Row(
            f"{vocabulary}: `encode_ordinary`, one text",
            lambda: peer.encode_ordinary(text),
            lambda: door.encode_ordinary(text),
            lambda: tok.encode_ordinary(text),
        ),
        Row(
            f"{vocabulary}: `encode`, one text, no special tokens allowed",
            lambda: peer.encode(text),
            lambda: door.encode(text),
            lambda: tok.encode(text, disallowed_special="all"),
        ),
        Row(
            f"{vocabulary}: `encode`, texts of {DOCUMENT:,} characters",
            lambda: [peer.encode(each) for each in texts],
            lambda: [door.encode(each) for each in texts],
            lambda: [tok.encode(each, disallowed_special="all") for each in texts],
        ),
        Row(
            f"{vocabulary}: `encode`, lines of {len(text) / len(lines):.0f} characters",
            lambda: [peer.encode(each) for each in lines],
            lambda: [door.encode(each) for each in lines],
            lambda: [tok.encode(each, disallowed_special="all") for each in lines],
        ),
        Row(
            f"{vocabulary}: `encode_batch`, the same texts, {threads} threads",
            lambda: peer.encode_batch(texts, num_threads=threads),
            lambda: door.encode_batch(texts, num_threads=threads),
            lambda: tok.encode_batch(texts, threads, disallowed_special="all"),
        ),
        Row(
            f"{vocabulary}: `decode`, one text",
            lambda: peer.decode(ids),
            lambda: door.decode(ids),
            lambda: tok.decode(ids),
        ),
    ]


if __name__ == "__main__":
    main()
