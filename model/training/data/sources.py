"""What `train` accepts as data, opened as batches, with the part that is held out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bpe_llama._core import shown
from bpe_llama._corpus.corpus import Corpus, open_corpus
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.training.config import TrainConfig
from bpe_llama.model.training.data.batches import Batch, Batches
from bpe_llama.model.training.data.iterable import IterableBatches
from bpe_llama.model.training.data.packing import PackedRows
from bpe_llama.model.training.data.rows import CorpusRows, Mixture, RowBatches, Rows, Windows, collate, first_windows
from bpe_llama.tokenizer import Tokenizer

Path = str | os.PathLike[str]
DataSource = Path | Sequence[Path] | Mapping[Path, float] | Batches | Iterable[Any]
"""The data of a run: a path, several paths, paths with weights, batches by index, or an iterable of batches."""


def open_data(
    data: DataSource,
    model: LlamaConfig,
    config: TrainConfig,
    *,
    eval_file: Path | None = None,
    tokenizer: Tokenizer | None = None,
) -> tuple[Batches, list[Batch]]:
    """Return the batches of a run and those that are held out: of `eval_file`, or of the end of each corpus.

    `tokenizer` made the ids, if given. The errors are those of `train`, and a `TypeError` if `data` is none
    of `DataSource`.
    """
    held_out = [] if eval_file is None else [_open(eval_file, model, config, tokenizer)]
    paths = _paths(data)
    if paths is None:
        return _batches(data, model), list(_held_out_batches(held_out, [1.0], model, config))
    corpora = [_open(path, model, config, tokenizer) for path in paths]
    tokenizers = {corpus.tokenizer: corpus.name for corpus in corpora + held_out if corpus.tokenizer}
    if len(tokenizers) > 1:
        raise ValueError(f"different tokenizers encoded {' and '.join(sorted(tokenizers.values()))}")
    given = zip(corpora, paths.values(), strict=True)
    weights = [len(corpus.tokens) if weight is None else weight for corpus, weight in given]
    if eval_file is None:
        parts = [corpus.split(config.eval_fraction, config.sequence_length) for corpus in corpora]
        corpora = [train for train, _ in parts]
        held_out = [part for _, part in parts if part is not None]
    batches = RowBatches(_rows(corpora, weights, model, config, config.sequence_length), config.batch_size)
    return batches, list(_held_out_batches(held_out, weights if eval_file is None else [1.0], model, config))


def _held_out_batches(
    corpora: list[Corpus], weights: list[float], model: LlamaConfig, config: TrainConfig
) -> Iterator[Batch]:
    """Yield at most `config.eval_windows` held-out rows as batches, packed and mixed as the training data are.

    Rows of one corpus are the first windows, in order, unless documents are packed or masked. A corpus shorter than a
    window is one.
    """
    if not corpora:
        return
    window = min(config.sequence_length, *(len(corpus.tokens) for corpus in corpora))
    if len(corpora) == 1 and config.packing == "concatenate" and not config.masks_documents:
        yield from first_windows(corpora[0].tokens, window, config.batch_size, config.eval_windows, model.vocab_size)
        return
    rows = _rows(corpora, weights, model, config, window)
    shares = list(zip(rows.corpora, rows.shares, strict=True)) if isinstance(rows, Mixture) else [(rows, 1.0)]
    # No row is repeated.
    count = min(config.eval_windows, max(1, int(min(part.rows_per_epoch / share for part, share in shares))))
    for first in range(0, count, config.batch_size):
        yield collate([rows.row(index) for index in range(first, min(first + config.batch_size, count))], window)


def _paths(data: DataSource) -> dict[Path, float | None] | None:
    """Return paths with their weights, None for their sizes; or None if the data are no paths."""
    if isinstance(data, (str, os.PathLike)):
        return {data: 1.0}
    if isinstance(data, Mapping):
        if not data:
            raise ValueError("no data: expected at least one path and its weight")
        for path, weight in data.items():
            if not (isinstance(weight, (int, float)) and 1e-100 <= weight <= 1e100):  # ratios that a float holds
                expected = "expected a positive number, from 1e-100 to 1e100"
                raise ValueError(f"the weight of {path} is {shown(weight)}, {expected}")
    elif not (isinstance(data, Sequence) and data and all(isinstance(path, (str, os.PathLike)) for path in data)):
        return None
    if len({str(path) for path in data}) < len(data):
        raise ValueError(f"a path is given twice in {', '.join(map(str, data))}; give it a larger weight")
    return dict(data) if isinstance(data, Mapping) else dict.fromkeys(data)


def _batches(data: Any, model: LlamaConfig) -> Batches:
    if all(hasattr(data, name) for name in ("fingerprint", "batch", "tokens_before")):
        return data
    if not isinstance(data, Iterable):
        raise TypeError(f"data are a {type(data).__name__}; expected paths, Batches or an iterable of batches")
    return IterableBatches(data, model.vocab_size, model.context_length)


def _open(path: Path, model: LlamaConfig, config: TrainConfig, tokenizer: Tokenizer | None) -> Corpus:
    limit = model.context_length
    if config.sequence_length > limit:
        raise ValueError(
            f"sequence_length is {config.sequence_length:,}, the model's context is {limit:,}; change one of them"
        )
    whole = config.packing == "best_fit" or config.masks_documents
    begins = () if model.bos_token_id is None else (model.bos_token_id,)
    ids: dict[str, Any] = {"ends": model.eos_token_ids, "begins": begins} if whole else {}
    corpus = open_corpus(path, model.vocab_size, **ids)
    if tokenizer is not None:
        corpus.check_tokenizer(tokenizer)
    if whole and corpus.starts is None:
        what = "packing is 'best_fit'" if config.packing == "best_fit" else "document_mask is true"
        raise ValueError(
            f"{path}: {what}, but its documents are not known: neither the EOS ids {list(model.eos_token_ids)} nor the "
            f"BOS id {model.bos_token_id} of the model occur; expected shards of `bpe-llama encode-corpus`"
        )
    return corpus


def _rows(corpora: list[Corpus], weights: list[float], model: LlamaConfig, config: TrainConfig, window: int) -> Rows:
    packed, mask = config.packing == "best_fit", config.masks_documents
    options: dict[str, Any] = {"window": window, "vocab_size": model.vocab_size, "seed": config.seed}
    rows: list[CorpusRows] = []
    for stream, corpus in enumerate(corpora):
        kind: type[CorpusRows] = PackedRows if packed else Windows
        starts = corpus.starts if packed or mask else None
        rows.append(kind(corpus.tokens, starts, **options, mask=mask, name=corpus.name, stream=stream))
    return rows[0] if len(rows) == 1 else Mixture(rows, weights, config.seed)
