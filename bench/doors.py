"""Other tools' interfaces over our tokenizer, against those tools: ``python -m bench.doors``.

The same text in the same process, in turns. Results are compared before anything is timed. The table goes to
bench/results/doors.md.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import datasets
import transformers

from bench import data, measure
from bench.published import PUBLISHED
from bpe_llama import Tokenizer

DOCUMENT = 4000  # characters of a text of the batch
SHORT = "The quick brown fox jumps over the lazy dog, and runs."
HEAD = """# Other tools' interfaces over our tokenizer

`python -m bench.doors` on {machine}.
{versions}. Best of {rounds} rounds in turns; millions of UTF-8 bytes a second of processor time, all threads together.

- cl100k, o200k: the calls of `tiktoken.Encoding` through `tok.as_tiktoken()`; `encode` refuses special tokens in a
  text, as by default.
- llama3, qwen2: the calls of transformers' fast tokenizer through `tok.as_transformers()`, on one thread. Our own call
  is `tok(...)`, `tok.decode` or `tok.decode_batch`. The last row is of a data set, read from and written to Arrow's
  tables: `map` with the fast tokenizer, `tok.encode_dataset`, and `map` with `tok`.
"""


class Row(NamedTuple):
    """A job through three interfaces: the tool itself, our object in its place, our own method."""

    job: str
    peer_door_own: Sequence[Callable[[], Any]]
    size: float  # megabytes
    calls: int = 1  # a timing, for short jobs


def main() -> None:
    """Print the table and write it."""
    parser = measure.parser(__doc__)
    parser.add_argument("--vocabulary", nargs="*", choices=["cl100k", "o200k"], default=["cl100k", "o200k"])
    parser.add_argument("--transformers", nargs="*", default=["llama3", "qwen2"], help="vocabularies of that table")
    parser.add_argument("--megabytes", type=int, default=2, help="of prose")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="of a batch of tiktoken's")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # both read it
    datasets.disable_caching()
    datasets.disable_progress_bars()
    text = data.corpus("prose", megabytes=options.megabytes).read_bytes().decode()
    lines = [
        "| job | peer, MB/s | as peer, MB/s | our own call, MB/s | against the peer | time over our own call |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))

    def rows() -> Iterator[Row]:
        for name in options.vocabulary:
            yield from tiktoken_rows(name, text, options.threads)
        for name in options.transformers:
            yield from transformers_rows(name, text)

    for row in rows():
        calls = dict(zip(("peer", "door", "own"), row.peer_door_own, strict=True))
        expected = calls["peer"]()
        for name in ("door", "own"):
            if calls[name]() != expected:
                raise SystemExit(f"{row.job}: {name} gives another result than the peer")
        del expected
        timings = measure.interleaved(calls, options.rounds, row.calls, clock=time.process_time)
        peer, door, own = (timings[name].best for name in ("peer", "door", "own"))
        lines.append(
            f"| {row.job} | {row.size / peer:.1f} | {row.size / door:.1f} | {row.size / own:.1f} "
            f"| {peer / door:.1f}x | {door / own - 1:+.0%} |"
        )
        print(lines[-1], flush=True)
    packages = measure.versions("bpe-llama", "tiktoken", "transformers", "tokenizers")
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
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
    own = partial(tok.encode, disallowed_special="all")
    size = megabytes([text])
    return [
        Row(
            f"{vocabulary}: `encode_ordinary`, one text",
            [partial(side.encode_ordinary, text) for side in (peer, door, tok)],
            size,
        ),
        Row(
            f"{vocabulary}: `encode`, one text",
            [partial(encode, text) for encode in (peer.encode, door.encode, own)],
            size,
        ),
        Row(
            f"{vocabulary}: `encode`, texts of {DOCUMENT:,} characters",
            [partial(each, encode, texts) for encode in (peer.encode, door.encode, own)],
            size,
        ),
        Row(
            f"{vocabulary}: `encode`, lines of {len(text) / len(lines):.0f} characters",
            [partial(each, encode, lines) for encode in (peer.encode, door.encode, own)],
            size,
        ),
        Row(
            f"{vocabulary}: `encode_batch`, the same texts, {threads} threads",
            [
                lambda: peer.encode_batch(texts, num_threads=threads),
                lambda: door.encode_batch(texts, num_threads=threads),
                lambda: tok.encode_batch(texts, threads, disallowed_special="all"),
            ],
            size,
        ),
        Row(f"{vocabulary}: `decode`, one text", [partial(side.decode, ids) for side in (peer, door, tok)], size),
    ]


def transformers_rows(vocabulary: str, text: str) -> list[Row]:
    """Return the jobs of transformers' fast tokenizer."""
    tok = Tokenizer.from_file(data.vocabulary(vocabulary))
    with tempfile.TemporaryDirectory() as folder:
        tok.save(folder)
        peer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    door: Any = tok.as_transformers()
    for side in (peer, door):
        side.pad_token = side.pad_token or side.eos_token or "<|endoftext|>"
    own: Any = partial(tok, allowed_special="all", num_threads=1, pad_id=peer.pad_token_id)
    paragraphs = [each for each in text.split("\n\n") if len(each) >= 100][:1000]
    documents = [text[start : start + DOCUMENT] for start in range(0, len(text) // 2, DOCUMENT)]
    count, mean = len(paragraphs), len("".join(paragraphs)) // len(paragraphs)
    padded: dict[str, Any] = {"truncation": True, "max_length": 128, "padding": "max_length"}
    rows = []
    for name, texts, options in (
        (f"{count:,} paragraphs of {mean} characters", paragraphs, {}),
        (f"texts of {DOCUMENT:,} characters", documents, {}),
        ("the paragraphs, truncated and padded to 128", paragraphs, padded),
        (f"one text of {len(SHORT)} characters", SHORT, {}),
    ):
        calls = [partial(values, side, texts, **options) for side in (peer, door, own)]
        size, repeats = (megabytes([SHORT]), 1000) if texts is SHORT else (megabytes(list(texts)), 1)
        rows.append(Row(f"{vocabulary}: `tokenizer(...)`, {name}", calls, size, repeats))
    ids = own(paragraphs)["input_ids"]
    decoders = [partial(decode, ids) for decode in (peer.batch_decode, door.batch_decode, tok.decode_batch)]
    rows.append(Row(f"{vocabulary}: `batch_decode`, the paragraphs", decoders, megabytes(paragraphs)))
    ids = own(SHORT)["input_ids"]
    decoders = [partial(side.decode, ids) for side in (peer, door, tok)]
    rows.append(Row(f"{vocabulary}: `decode`, {len(ids)} ids", decoders, megabytes([SHORT]), 1000))
    return [*rows, dataset_row(vocabulary, tok, peer, documents * 8)]  # long enough to hide the hash of the tokenizer


def dataset_row(vocabulary: str, tok: Tokenizer, peer: Any, texts: list[str]) -> Row:
    """Return the job of encoding a data set: `map` with the fast tokenizer, `encode_dataset`, and `map` with ours."""
    rows = datasets.Dataset.from_dict({"text": texts})
    own = partial(tok, num_threads=1, return_attention_mask=False)

    def mapped(call: Callable[..., Any]) -> Any:
        encoded = rows.map(lambda batch: {"input_ids": call(batch["text"])["input_ids"]}, batched=True)
        return encoded.data.column("input_ids")

    calls = [
        lambda: mapped(partial(peer, return_attention_mask=False)),
        lambda: tok.encode_dataset(rows, num_threads=1).data.column("input_ids"),
        lambda: mapped(own),
    ]
    job = f"{vocabulary}: `encode_dataset` against `datasets.map`, texts of {DOCUMENT:,} characters"
    return Row(job, calls, megabytes(texts))


def values(call: Callable[..., Any], texts: Any, **options: Any) -> dict[str, Any]:
    """Return the columns of a batch."""
    batch: dict[str, Any] = call(texts, **options)
    return getattr(batch, "data", batch)


def each(encode: Callable[[str], list[int]], texts: list[str]) -> list[list[int]]:
    """Return the ids of each text."""
    return [encode(text) for text in texts]


def megabytes(texts: list[str]) -> float:
    """Return the size of texts in UTF-8."""
    return sum(len(text.encode()) for text in texts) / 1e6


if __name__ == "__main__":
    main()
