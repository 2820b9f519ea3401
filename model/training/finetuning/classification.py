"""Training a classifier of texts: labelled rows, their batches, the loss, and the run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from torch.nn import functional

from bpe_llama._core import shown
from bpe_llama._corpus.bad_rows import BadRows
from bpe_llama._corpus.rows import check_text, has_rows, read_rows
from bpe_llama._files import PathLike
from bpe_llama._progress import note
from bpe_llama.model.classification import LlamaForSequenceClassification
from bpe_llama.model.evaluation.classification import (
    ClassifierScore,
    LabelledText,
    checked_padding,
    evaluate_classifier,
    pad_texts,
)
from bpe_llama.model.training.callbacks import TrainResult
from bpe_llama.model.training.config import TrainConfig, with_epochs
from bpe_llama.model.training.data.batches import Batch, check_ids
from bpe_llama.model.training.data.examples import ExampleBatches
from bpe_llama.model.training.finetuning.show import print_trainable_parameters
from bpe_llama.model.training.run import ReportOptions, train_on_batches
from bpe_llama.model.training.step import Scored, TensorBatch
from bpe_llama.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LabelledTexts(NamedTuple):
    """The result of `read_labelled`.

    Attributes:
        texts: The texts, in the order of the files.
        labels: The names of the labels, by id.
        truncated: The number of texts that were longer than `max_length`.
    """

    texts: list[LabelledText]
    labels: list[str]
    truncated: int


def read_labelled(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    max_length: int,
    *,
    text_field: str = "text",
    label_field: str = "label",
    labels: Sequence[str] | None = None,
    on_error: str = "raise",
) -> LabelledTexts:
    """Return the texts and labels of rows.

    A text has the ids of `tokenizer(text)`, what the tokenizer's files put around it included; a longer one is
    truncated, special tokens excepted. Labels are strings, integers or booleans, of one kind; sorted, they get the ids
    0, 1 and so on.

    Args:
        paths: `.json`, `.jsonl`, `.ndjson` and `.parquet` files; those ending in `.gz` or `.zst` are decompressed.
        tokenizer: Its vocabulary.
        max_length: Longest text in tokens.
        text_field: The field of the text.
        label_field: The field of the label.
        labels: The names of the labels of a trained classifier; None for those of the rows.
        on_error: "raise" an error at the first row that cannot be used, or "skip" such rows and warn of their number.

    Raises:
        ImportError: If `pyarrow`, which reads Parquet files, is not installed.
        ValueError: If a row cannot be used and `on_error` is "raise", naming file and place; if a file has no rows,
            labels are of several kinds, or there are fewer than 2.
    """
    bad_rows = BadRows(on_error)
    found: list[tuple[list[int], str]] = []
    values: dict[str, Any] = {}
    truncated = 0
    for path in paths:
        if not has_rows(path):
            raise ValueError(f"{path}: expected rows with a text and a label: .json, .jsonl, .ndjson or .parquet")
        for place, row in read_rows(path, bad_rows):
            with bad_rows.caught(place):
                text, value = _text_and_label(row, text_field, label_field)
                ids = list(tokenizer(text, truncation=False)["input_ids"])
                if not ids:
                    raise ValueError(f"{text_field!r} is {shown(text)}, which has no token to classify")
                if labels is not None and str(value) not in labels:
                    raise ValueError(f"{label_field!r} is {shown(value)}; expected one of {', '.join(labels)}")
                if len(ids) > max_length:
                    ids = list(tokenizer(text, truncation=True, max_length=max_length)["input_ids"])
                    truncated += 1
                values.setdefault(str(value), value)
                found.append((ids, str(value)))
    bad_rows.warn(stacklevel=2)
    names = _sorted_names(values, label_field) if labels is None else list(labels)
    if not found:
        raise ValueError(f"{paths[0]}: no row has a text and a label")
    numbers = {name: number for number, name in enumerate(names)}
    return LabelledTexts([LabelledText(np.array(ids), numbers[name]) for ids, name in found], names, truncated)


def _text_and_label(row: Any, text_field: str, label_field: str) -> tuple[str, str | int]:
    if not isinstance(row, dict) or row.get(text_field) is None or row.get(label_field) is None:
        fields = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"expected an object with {text_field!r} and {label_field!r}; its fields are {fields}")
    text, label = row[text_field], row[label_field]
    if not isinstance(text, str):
        raise ValueError(f"{text_field!r} is {shown(text)}; expected a text")
    if not isinstance(label, str | int):
        raise ValueError(f"{label_field!r} is {shown(label)}; expected a string, an integer or a boolean")
    check_text(text, text_field)
    check_text(label, label_field)
    return text, label


def _sorted_names(values: Mapping[str, Any], label_field: str) -> list[str]:
    """Return the names of the labels, in the order of their values."""
    kinds = {type(value) for value in values.values()}
    if len(kinds) > 1:
        shown = ", ".join(repr(next(v for v in values.values() if type(v) is kind)) for kind in kinds)
        raise ValueError(f"{label_field!r} holds {shown}; expected labels of one kind")
    if len(values) < 2:
        raise ValueError(f"{label_field!r} holds {' and '.join(values) or 'nothing'}; expected at least 2 labels")
    return sorted(values, key=lambda name: values[name])


def padding_for(tokenizer: Tokenizer, model_padding: int | None, ends: Sequence[int], vocab_size: int) -> int:
    """Return the id that pads texts: the tokenizer's, the model's, or one that ends a text; else raise `ValueError`."""
    for token_id in (tokenizer.pad_id, model_padding, tokenizer.eos_id, *ends):
        if token_id is not None and 0 <= token_id < vocab_size:
            return token_id
    raise ValueError("neither tokenizer nor model name a padding or an end-of-text token, which a classifier needs")


def split_texts(
    texts: Sequence[LabelledText], eval_fraction: float, seed: int
) -> tuple[list[LabelledText], list[LabelledText]]:
    """Return the texts to train on and the held-out ones, which are drawn at random: files are often sorted by label.

    Raises:
        ValueError: If no text is left to train on.

    Example:
        >>> texts = [LabelledText(np.array([3]), label) for label in range(10)]
        >>> [len(part) for part in split_texts(texts, 0.2, seed=0)]
        [8, 2]
    """
    count = max(1, int(len(texts) * eval_fraction)) if eval_fraction else 0
    if count >= len(texts):
        raise ValueError(f"{len(texts)} texts are too few to train on and to hold {eval_fraction:.0%} of them out")
    held_out = set(np.random.default_rng([seed, len(texts)]).permutation(len(texts))[:count].tolist())
    parts: tuple[list[LabelledText], list[LabelledText]] = ([], [])
    for place, text in enumerate(texts):
        parts[place in held_out].append(text)
    return parts


class LabelledBatches(ExampleBatches):
    """Shuffled batches of labelled texts: ids (B, T), padded on the right, and labels (B,).

    Example:
        >>> batches = LabelledBatches([LabelledText(np.array([5, 6]), 1)], batch_size=2, padding=0)
        >>> batches.batch(0).labels
        array([1, 1])
    """

    KIND: ClassVar[type] = LabelledText

    def __init__(self, texts: Sequence[LabelledText], *, batch_size: int, padding: int, seed: int = 0) -> None:
        super().__init__(texts, batch_size=batch_size, seed=seed)  # type: ignore[arg-type]  # they have ids and labels
        self.padding = padding

    def batch(self, index: int) -> Batch:
        """Return batch `index`, whose labels are int64 `(B,)`."""
        return Batch(*pad_texts(self.rows(index), self.padding))  # type: ignore[arg-type]


def classification_score(model: LlamaForSequenceClassification, batch: TensorBatch, learned: int) -> Scored:
    """Return the summed cross-entropy of the labels over `learned`, the texts of the step, and how many are right.

    The config's `pad_token_id` tells what is padding, as in transformers.
    """
    logits_BL = model(batch.ids).logits.float()
    loss = functional.cross_entropy(logits_BL, batch.labels, reduction="sum") / learned
    return Scored(loss, correct=(logits_BL.argmax(-1) == batch.labels).sum())


def train_classifier(
    model: LlamaForSequenceClassification,
    texts: Sequence[LabelledText],
    config: TrainConfig,
    out: PathLike,
    *,
    eval_texts: Sequence[LabelledText] = (),
    **options: Unpack[ReportOptions],
) -> tuple[TrainResult, ClassifierScore | None]:
    """Train a classifier in place, and return the result and the score of the held-out texts.

    All weights are trained, or, after `lora.add`, the adapter and the head. Works as `train_on_examples`; the losses
    are in nats per text.

    Args:
        model: The classifier; its config has a `pad_token_id`.
        texts: The training data.
        config: The run's options.
        out: Folder of the run; created if it does not exist.
        eval_texts: Held-out texts, scored at the end and every `config.eval_every` steps.
        options: `resume`, `progress` and `callbacks`, as of `train`.

    Raises:
        ValueError: As `train`; or if the config has no `pad_token_id`, a text is longer than the model's context, or an
            id or label is out of range.

    Example:
        >>> result, score = train_classifier(model, texts, TrainConfig(), "run", eval_texts=others)  # doctest: +SKIP
        >>> score.accuracy  # doctest: +SKIP
        0.93
    """
    texts, eval_texts = list(texts), list(eval_texts)
    padding, context = checked_padding(model.config, [*texts, *eval_texts]), model.config.context_length
    for text in [*texts, *eval_texts]:
        if (text.ids == padding).all():
            raise ValueError(f"a text has no token to classify: {text.ids.tolist()!r:.40}, where {padding} is padding")
        if len(text.ids) > context:
            raise ValueError(f"a text has {len(text.ids):,} tokens, the model's context is {context:,}")
        check_ids(text.ids, model.config.vocab_size, " of a text")
    batches = LabelledBatches(texts, batch_size=config.batch_size, padding=padding, seed=config.seed)
    unseen = set(range(model.config.num_labels)) - {text.label for text in texts}
    if unseen:
        names = ", ".join(model.config.label_names[label] for label in sorted(unseen))
        warnings.warn(f"no text to train on has the label {names}", stacklevel=2)
    size = config.batch_size
    result = train_on_batches(
        model,
        batches,
        config,
        out,
        held_out=[Batch(*pad_texts(eval_texts[i : i + size], padding)) for i in range(0, len(eval_texts), size)],
        loss_fn=classification_score,
        score_fn=classification_score,
        **options,
    )
    if result.interrupted or not eval_texts:
        return result, None
    return result, evaluate_classifier(model, eval_texts, batch_size=size)


def finetune_classifier(
    model: LlamaForSequenceClassification,
    data: LabelledTexts,
    config: TrainConfig,
    out: PathLike,
    *,
    epochs: float | None = None,
    **options: Unpack[ReportOptions],
) -> tuple[TrainResult, ClassifierScore | None]:
    """Train a classifier on the texts of `read_labelled`, of which `config.eval_fraction` are held out at random.

    Args:
        model: As of `train_classifier`.
        data: The texts.
        config: The run's options.
        out: Folder of the run.
        epochs: Passes over the data, instead of `config.max_steps`.
        options: As of `train_classifier`.

    Raises:
        ValueError: As `train_classifier`; or if `epochs` is not positive or there are too few texts.
    """
    texts, held_out = split_texts(data.texts, config.eval_fraction, config.seed)
    if data.truncated:
        note(f"{data.truncated} texts truncated to {config.sequence_length} tokens")
    print_trainable_parameters(model)
    config = with_epochs(config, epochs, len(texts))
    return train_classifier(model, texts, config, out, eval_texts=held_out, **options)
