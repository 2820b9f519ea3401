"""Classifiers on the command line: their labels, loading, and the end of a training run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bpe_llama._files import complete_writes, read_json_object, write_text
from bpe_llama._progress import note
from bpe_llama.model.adapters import lora
from bpe_llama.model.classification import LlamaForSequenceClassification
from bpe_llama.model.cli.loading import group_size_of, load_model
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.evaluation.classification import ClassifierScore
from bpe_llama.model.quantization import quantize
from bpe_llama.model.training.finetuning.classification import padding_for
from bpe_llama.tokenizer import Tokenizer


def is_classifier(folder: Path) -> bool:
    """Return whether a folder's ``config.json`` names a class for sequence classification."""
    if folder.is_dir():
        complete_writes(folder)
    if not (folder / "config.json").is_file():
        return False
    names = read_json_object(folder / "config.json").get("architectures") or [""]
    return str(names[0]).endswith("ForSequenceClassification")


def load_classifier(
    path: Path,
    labels: Sequence[str] | None,
    tokenizer: Tokenizer,
    dtype: str,
    device: str,
    *,
    quantized: str | None = None,
    group_size: int | None = None,
    seed: int = 0,
) -> LlamaForSequenceClassification:
    """Return the classifier at a path, or one of these labels with the decoder of the causal LM there and a new head.

    Args:
        path: A folder, or a ``.gguf``.
        labels: The labels of a new head.
        tokenizer: Its padding or end-of-text id pads texts, unless the classifier's config names one.
        dtype: ``auto`` or the name of a dtype.
        device: ``auto`` or the name of a device.
        quantized: A format to quantize the linear layers of the decoder to.
        group_size: Of int4; None for the default.
        seed: Seed of a new head.
    """
    if is_classifier(path):
        model = LlamaForSequenceClassification.from_pretrained(path, dtype=dtype, device=device)
        if model.config.pad_token_id is None:
            padding = padding_for(tokenizer, None, model.end_ids, model.config.vocab_size)
            model.config = model.model.config = model.config.replace(pad_token_id=padding)
    else:
        base = load_model(path, dtype, device)
        padding = padding_for(tokenizer, base.config.pad_token_id, base.end_ids, base.config.vocab_size)
        model = LlamaForSequenceClassification.from_causal_lm(base, labels or (), pad_token_id=padding, seed=seed)
    if quantized is not None:
        quantize.quantize(model.model, quantized, group_size_of(path, quantized, group_size))
    return model


def load_adapted_classifier(
    path: Path,
    adapter: Path | None,
    tokenizer: Tokenizer,
    dtype: str,
    device: str,
    quantized: str | None,
    group_size: int | None,
) -> LlamaForSequenceClassification:
    """Return a trained classifier: a folder of its own, or a base with the adapter of a classifier.

    Raises:
        ValueError: If the folder of an adapter has no ``config.json``, which names the labels.
    """
    labels = None
    if adapter is not None and not is_classifier(path):
        if not is_classifier(adapter):
            raise ValueError(f"{adapter}: holds no config.json of a classifier, which names the labels")
        labels = LlamaConfig.from_json(adapter).label_names
    model = load_classifier(path, labels, tokenizer, dtype, device, quantized=quantized, group_size=group_size)
    if adapter is not None:
        if labels is not None:
            padding = LlamaConfig.from_json(adapter).pad_token_id
            model.config = model.model.config = model.config.replace(pad_token_id=padding)
        lora.load(model, adapter)
    return model


def is_classifiers_adapter(folder: Path | None) -> bool:
    """Return whether a folder has an adapter of a classifier."""
    if folder is None:
        return False
    complete_writes(folder)
    if not (folder / "adapter_config.json").is_file():
        return False
    return read_json_object(folder / "adapter_config.json").get("task_type") == "SEQ_CLS"


def report_score(score: ClassifierScore | None, labels: Sequence[str], out: Path, on_stdout: bool = True) -> None:
    """Print accuracy and confusion matrix of the held-out texts, and write them to ``evaluation.json``."""
    if score is not None:
        note(score.describe(labels), on_stdout=on_stdout)
        write_text(out / "evaluation.json", json.dumps(score.to_dict(labels), indent=2) + "\n")
