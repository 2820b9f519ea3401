"""Perplexity and bits per byte of a model over documents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bpe_llama._arguments import check_surrogates, instance, integer, iterator, string
from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._corpus.token_files import begins_and_ends
from bpe_llama._progress import ProgressOption, reporting
from bpe_llama.model.evaluation.bits_per_byte import bits_per_byte
from bpe_llama.model.evaluation.perplexity import check_windows, exponential, windows_of
from bpe_llama.model.evaluation.scoring import Row, score_rows
from bpe_llama.model.generation.prompts import check_vocabulary
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import check_model

if TYPE_CHECKING:
    from bpe_llama.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts documents.

    Attributes:
        nats: The summed negative log-likelihood of the scored tokens.
        tokens: The number of scored tokens.
        bytes: The UTF-8 bytes of the text of the scored tokens.
        documents: The number of documents.
    """

    nats: float
    tokens: int
    bytes: int
    documents: int

    @property
    def loss(self) -> float:
        """Return the mean loss in nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Return ``exp(loss)``: comparable between models of one vocabulary."""
        return exponential(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Return the loss in bits per byte of text: comparable between vocabularies."""
        return bits_per_byte(self.nats, self.bytes)

    @property
    def tokens_per_byte(self) -> float:
        """Return the scored tokens per byte of text."""
        return self.tokens / self.bytes

    def to_dict(self) -> dict[str, float]:
        """Return all figures."""
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "nats": self.nats,
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens_per_byte": self.tokens_per_byte,
        }


def evaluate_text(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    documents: Iterable[str],
    *,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    progress: ProgressOption = None,
) -> TextScore:
    """Return how well a model predicts documents, each on its own.

    Each document begins with the special tokens that the tokenizer's files put before a text, such as BOS. They are
    context and are not scored; all tokens of the document are. If the files put nothing before a text, the first token
    has no context: it is not scored, and its bytes do not count. Special tokens after a text, such as EOS, are left
    out. Text that looks like a special token is ordinary text.

    Longer documents are read in windows, as by `bpe_llama.model.perplexity`.

    Args:
        model: A model of any dtype, quantized or not, with or without adapters.
        tokenizer: Its vocabulary.
        documents: The texts.
        window: Tokens of one forward pass; by default the context length, but at most 1024.
        stride: Tokens between the beginnings of windows, by default ``window - 1``.
        batch_size: Windows of one forward pass.
        progress: Show a progress bar on stderr; None: only if stderr is a terminal.

    Raises:
        TypeError: If ``documents`` is one text, or a document is no ``str``.
        ValueError: If no token can be scored, a document has a lone surrogate, the tokenizer has more ids than the
            model, or ``window``, ``stride`` or ``batch_size`` is out of range.

    Cost: the ids of all documents in memory; one forward pass a batch.

    Example:
        >>> from bpe_llama import Tokenizer
        >>> from bpe_llama.model import LlamaConfig
        >>> tok = Tokenizer.train_from_iterator(["ab"], vocab_size=256, progress=False)
        >>> config = LlamaConfig(vocab_size=256, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, initializer_range=0.0)
        >>> score = evaluate_text(LlamaForCausalLM(config), tok, ["abc", "de"])
        >>> score.tokens, score.bytes, round(score.bits_per_byte, 3)  # the first byte of each document is context
        (3, 3, 8.0)
    """
    check_model(model)
    instance("tokenizer", tokenizer, CoreTokenizer, "a Tokenizer")
    batch_size = integer("batch_size", batch_size, 1)
    check_vocabulary(tokenizer, model.config.vocab_size)
    window, stride = check_windows(window, stride, model.config.context_length)
    before, _ = begins_and_ends(tokenizer)
    rows: list[Row] = []
    count = size = 0
    for text in iterator("documents", documents, "a list of texts"):
        name = f"documents[{count}]"
        check_surrogates(name, string(name, text))
        count += 1
        own = tokenizer.encode_ordinary(text)
        size += len(text.encode()) - (len(tokenizer.decode_bytes(own[:1])) if own and not before else 0)
        ids = np.array([*before, *own], dtype=np.int64)
        rows.extend(windows_of(ids, window, stride, first=max(1, len(before))))
    total = sum(len(row.ids) - row.first for row in rows)
    if not total or size <= 0:
        raise ValueError(f"the text has {count:,} documents, and none with a token to score; expected some text")
    done = 0
    with reporting(progress) as report:

        def advance(more: int) -> None:
            nonlocal done
            done += more
            if report is not None:
                report("score", done, total)

        nats = sum(score.nats for score in score_rows(model, rows, batch_size, advance))
    return TextScore(nats, total, size, count)
