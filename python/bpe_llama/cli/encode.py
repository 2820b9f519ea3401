"""`bpe-llama encode`: text to ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from bpe_llama._by_name import open_tokenizer
from bpe_llama._corpus.shards import dtype_of
from bpe_llama._corpus.token_files import check_out
from bpe_llama._files.arrays import begin_array
from bpe_llama._progress import note
from bpe_llama.cli.options import DEFAULT_TOKENIZER, FileOption, TextArgument, TokenizerName, read_text

EXAMPLE = "Example: bpe-llama encode 'Hello world' --tokenizer tokenizer.json"


def command(
    text: TextArgument = None,
    file: FileOption = None,
    tokenizer: TokenizerName = DEFAULT_TOKENIZER,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write a NumPy array of ids here (.npy).")] = None,
    bos: Annotated[bool, typer.Option("--bos", help="Prepend the beginning-of-text token.")] = False,
    eos: Annotated[bool, typer.Option("--eos", help="Append the end-of-text token.")] = False,
    allow_special: Annotated[bool, typer.Option(help="Encode special tokens in the text as their ids.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ids as a JSON list.")] = False,
) -> None:
    """Print the ids of a text, or save them."""
    if as_json and out is not None:
        raise ValueError("give --json or --out, not both")
    if out is not None:
        check_out(out)
    loaded = open_tokenizer(tokenizer)
    content = read_text(text, file)
    ids = loaded.encode(content, bos=bos, eos=eos, allowed_special="all" if allow_special else ())
    if out is None:
        typer.echo(json.dumps(ids) if as_json else " ".join(map(str, ids)))
    else:
        with begin_array(out, dtype_of(loaded.vocab_size)) as array:
            array.append(np.array(ids, np.uint32))
        note(f"{out}: {len(ids):,} ids", on_stdout=True)
