"""Batches through `Tokenizer.as_transformers` against transformers' own fast tokenizer, on the same files.

    python -m bench.as_transformers        # the table, and bench/results/as_transformers.jsonl

A batch is 1,000 paragraphs of prose. Each runs on one thread, timed by its CPU time; they take turns within each round,
and must give equal results before they are timed. ``tok(...)`` is our own call, without transformers.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from typing import Any

import torch
import transformers

from bench import data, measure
from bpe_llama import Tokenizer

VOCABULARIES = ("cl100k", "llama3", "qwen2")


def paragraphs(count: int) -> list[str]:
    texts = data.corpus("prose", megabytes=2).read_text("utf-8").split("\n\n")
    return [text for text in texts if len(text) >= 100][:count]


def row_of(vocabulary: str, texts: list[str], rounds: int) -> dict[str, Any]:
    """Return the best milliseconds a batch of each candidate."""
    tok = Tokenizer.from_file(data.vocabulary(vocabulary))
    with tempfile.TemporaryDirectory() as folder:
        tok.save(folder)
        theirs: Any = transformers.AutoTokenizer.from_pretrained(folder)
    ours: Any = tok.as_transformers()
    ids = theirs(texts)["input_ids"]
    assert ours(texts)["input_ids"] == ids and ours.batch_decode(ids) == theirs.batch_decode(ids)
    times = measure.interleaved(
        {
            "as_transformers": partial(ours, texts),
            "fast tokenizer": partial(theirs, texts),
            "tok(...)": partial(tok, texts, allowed_special="all"),  # on all processors
            "as_transformers, decode": partial(ours.batch_decode, ids),
            "fast tokenizer, decode": partial(theirs.batch_decode, ids),
        },
        rounds,
    )
    return {"vocabulary": vocabulary, **{name: round(timing.best * 1000, 1) for name, timing in times.items()}}


def main() -> None:
    """Print the table and append it to the results."""
    parser = measure.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # both read it
    torch.set_num_threads(1)  # so that `measure.clock` is the CPU time
    texts = paragraphs(1000)
    rows = [row_of(vocabulary, texts, options.rounds) for vocabulary in VOCABULARIES]
    print(f"{len(texts)} paragraphs, {sum(map(len, texts)):,} characters; CPU milliseconds a batch, best round")
    print(measure.markdown(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    packages = measure.versions("transformers", "tokenizers")
    measure.append("as_transformers", "as_transformers", packages=packages, rows=rows)


if __name__ == "__main__":
    main()
