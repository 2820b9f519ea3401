"""Open a tokenizer as the command line names it: a path, a published vocabulary, or a repository of the Hub."""

from __future__ import annotations

import difflib
from pathlib import Path

from bpe_llama._files import PathLike
from bpe_llama.tokenizer import Tokenizer


def open_tokenizer(name: PathLike) -> Tokenizer:
    """Return the tokenizer of a name.

    What exists is a path. Else a published name, such as ``o200k_base`` or ``gpt-4o``, is that vocabulary
    (`Tokenizer.from_name`), and any other name a repository (`Tokenizer.from_pretrained`). The tokenizer of the
    repository ``gpt2`` is ``openai-community/gpt2``, as ``gpt2`` alone is OpenAI's file, with the same ids.

    Raises:
        OSError: If there is none of these; the message says where it was looked for, and the nearest published name.
        ValueError: See `Tokenizer.from_file`.

    Examples:
        >>> open_tokenizer("no/such/tokenizer.json")
        Traceback (most recent call last):
        FileNotFoundError: no/such/tokenizer.json: no such file or folder
    """
    if not isinstance(name, str) or Path(name).exists():
        return Tokenizer.from_pretrained(name)
    from bpe_llama._loading.published.model_names import vocabulary_of_model
    from bpe_llama._loading.published.vocabularies import PUBLISHED

    if name in PUBLISHED or vocabulary_of_model(name) is not None:
        return Tokenizer.from_name(name)
    try:
        return Tokenizer.from_pretrained(name)
    except OSError as error:
        alike = difflib.get_close_matches(name, PUBLISHED, n=2)
        if not alike:
            raise
        raise FileNotFoundError(f"{error}; did you mean {' or '.join(alike)}?") from None
