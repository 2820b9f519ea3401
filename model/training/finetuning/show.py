"""Prints an example with its learned tokens coloured, and how many weights are trained."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.text import Text
from torch import nn

from bpe_llama._progress import note
from bpe_llama.display import visible
from bpe_llama.model.layers.loss import IGNORED
from bpe_llama.tokenizer import Tokenizer

_LEARNED = "black on #b8ecc4"


def example_text(
    tokenizer: Tokenizer, ids: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], *, brackets: bool = False
) -> Text:
    """Return the text of an example, with the learned tokens on a green background.

    `ids` and `labels` are those of an `Example`; `brackets` puts learned tokens in `⟦⟧` instead, where no colour shows.

    Example:
        >>> from bpe_llama import Tokenizer
        >>> tok = Tokenizer.train_from_iterator(["ab"], vocab_size=256, progress=False)
        >>> ids = np.array(tok.encode("2+2=4"))
        >>> example_text(tok, ids, np.where(np.arange(5) < 4, -100, ids), brackets=True).plain
        '2+2=⟦4⟧'
    """
    text = Text()
    for learned, run in itertools.groupby(zip(ids.tolist(), labels.tolist(), strict=True), lambda p: p[1] != IGNORED):
        shown = visible(tokenizer.decode_bytes([token for token, _ in run]))
        if learned:
            text.append(f"⟦{shown}⟧" if brackets else shown, style=_LEARNED)
        else:
            text.append(shown)
    return text


def print_example(
    tokenizer: Tokenizer, ids: npt.NDArray[np.int64], labels: npt.NDArray[np.int64] | None = None
) -> None:
    """Print an example on stderr; without `labels`, every token is learned."""
    labels = ids if labels is None else labels
    console = Console(file=sys.stderr)
    brackets = console.color_system is None
    how = "in brackets" if brackets else "coloured"
    learned = int((labels[1:] != IGNORED).sum())
    console.print(f"The first example: {len(ids):,} tokens, {learned:,} of them learned ({how}):", highlight=False)
    console.print(example_text(tokenizer, ids, labels, brackets=brackets), soft_wrap=True)


def print_trainable_parameters(model: nn.Module) -> None:
    """Print the number of weights that are trained on stderr."""
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    note(f"{trained:,} trainable parameters")
