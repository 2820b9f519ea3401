"""`bpe-llama encode-corpus`: files of text to token shards."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from bpe_llama._by_name import open_tokenizer
from bpe_llama._progress import note
from bpe_llama.cli.options import (
    DEFAULT_TOKENIZER,
    JsonOption,
    OnErrorOption,
    SeparatorOption,
    ThreadsOption,
    TokenizerName,
    integer_option,
)

EXAMPLE = "Example: bpe-llama encode-corpus 'corpus/*.jsonl.zst' --tokenizer tokenizer.json --out shards"


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder; one that is not complete is continued.")],
    corpus: Annotated[
        list[str] | None, typer.Argument(help="Files, folders or globs; .txt, .jsonl, .parquet, .gz, .zst.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="In place of files: a data set of the Hugging Face Hub, or a folder of one.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="The configuration of --dataset.")] = None,
    split: Annotated[str, typer.Option(help="The split of --dataset, such as 'train' or 'train[:1%]'.")] = "train",
    tokenizer: TokenizerName = DEFAULT_TOKENIZER,
    field: Annotated[str, typer.Option(help="The field or column of .jsonl, .parquet and --dataset.")] = "text",
    separator: SeparatorOption = None,
    bos: Annotated[
        bool | None,
        typer.Option("--bos/--no-bos", help="Begin documents with the bos token; default: as the tokenizer's files."),
    ] = None,
    eos: Annotated[
        bool,
        typer.Option("--eos/--no-eos", help="End documents as the tokenizer's files say, else with eos."),
    ] = True,
    on_error: OnErrorOption = "raise",
    allow_special: Annotated[
        bool, typer.Option(help="Encode special tokens in the documents as their ids, as in rendered chats.")
    ] = False,
    shard_tokens: Annotated[int, integer_option("A shard ends with the document that reaches it.")] = 100_000_000,
    threads: ThreadsOption = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Encode on this Ray cluster; auto: find one, local: start one."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Encode a corpus into token shards for training. The same command goes on where an earlier run ended."""
    for name, value in (("--threads", threads), ("--dataset", dataset)):
        if ray is not None and value is not None:
            raise ValueError(f"give {name} or --ray, not both")
    if dataset is None and (config is not None or split != "train"):
        raise ValueError(f"{'--split' if config is None else '--config'} needs --dataset")
    started = time.perf_counter()
    loaded = open_tokenizer(tokenizer)
    allowed = "all" if allow_special else ()
    if ray is not None:
        from bpe_llama import scale

        with scale.cluster(ray):
            shards = scale.encode_corpus(
                corpus or [],
                loaded,
                out,
                separator=separator,
                eos=eos,
                bos=bos,
                field=field,
                on_error=on_error,
                shard_tokens=shard_tokens,
                allowed_special=allowed,
            )
    else:
        shards = loaded.encode_corpus(
            corpus or [],
            out,
            dataset=dataset,
            config=config,
            split=split,
            separator=separator,
            eos=eos,
            bos=bos,
            field=field,
            on_error=on_error,
            shard_tokens=shard_tokens,
            allowed_special=allowed,
            num_threads=threads,
        )
    seconds = time.perf_counter() - started
    if eos and shards.documents > 1 and not any(loaded.ids_around_documents(bos, eos)):
        note("the tokenizer has no eos token, so nothing separates the documents; see --special of train-tokenizer")
    if as_json:
        figures = {"out": str(out), "tokens": shards.tokens, "documents": shards.documents, "bytes": shards.bytes}
        typer.echo(json.dumps(figures | {"shards": len(shards.shards), "seconds": seconds}, indent=2))
        return
    per_token = f", {shards.bytes / shards.tokens:.2f} bytes a token" if shards.tokens else ""
    note(
        f"{out}: {shards.tokens:,} tokens in {seconds:.1f} s; "
        f"{shards.documents:,} documents in {len(shards.shards):,} shards{per_token}",
        on_stdout=True,
    )
