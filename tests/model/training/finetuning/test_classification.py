"""Training a classifier: labelled rows, batches, gradients, resuming, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional

from bpe_llama import Tokenizer
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, lora, training
from bpe_llama.model.evaluation.classification import LabelledText, evaluate_classifier, pad_texts
from bpe_llama.model.training.finetuning import classification
from bpe_llama.model.training.finetuning.classification import (
    LabelledBatches,
    classification_score,
    padding_for,
    read_labelled,
    split_texts,
    train_classifier,
)
from bpe_llama.model.training.report import metrics as report
from bpe_llama.model.training.report.loggers import logger_named
from bpe_llama.model.training.report.metrics import plot_loss
from bpe_llama.model.training.step import Scored
from tests.model.training.helpers import CONFIG, SETTINGS, losses

LABELS = ["no", "yes", "unsure"]


def judge(**changes: Any) -> LlamaForSequenceClassification:
    base = LlamaForCausalLM(CONFIG.replace(tie_word_embeddings=False, **changes), seed=0)
    return LlamaForSequenceClassification.from_causal_lm(base, LABELS, pad_token_id=0, seed=1)


def texts(count: int = 30, seed: int = 0) -> list[LabelledText]:
    """Texts of different lengths; the label is in their first token."""
    random = np.random.default_rng(seed)
    found = []
    for place in range(count):
        ids = random.integers(4, 60, int(random.integers(2, 16)))
        ids[0] = 1 + place % 3
        found.append(LabelledText(ids, place % 3))
    return found


def test_a_classifier_learns_labels_and_its_held_out_score_is_that_of_its_predictions(tmp_path: Path) -> None:
    model, held_out = judge(), texts(21, seed=1)
    config = training.TrainConfig(max_steps=60, eval_every=20, **SETTINGS)
    once = iter(held_out)  # can be read once
    result, score = train_classifier(model, iter(texts()), config, tmp_path, eval_texts=once, progress=False)  # type: ignore[arg-type]
    assert score is not None and score.accuracy > 0.7  # chance: 0.33
    assert result.eval_loss == pytest.approx(score.loss, rel=1e-6)
    confusion, total = np.zeros((3, 3), dtype=int), 0.0
    with torch.no_grad():
        for text in held_out:  # one at a time: without padding
            logits = model(torch.from_numpy(text.ids[None])).logits
            confusion[text.label, int(logits.argmax())] += 1
            total += functional.cross_entropy(logits, torch.tensor([text.label])).item()
    assert score.confusion.tolist() == confusion.tolist()
    assert score.loss == pytest.approx(total / len(held_out), rel=1e-5)
    assert score.accuracy == confusion.trace() / 21
    evaluations = [line for line in training.read_metrics(tmp_path / "metrics.jsonl") if "eval_loss" in line]
    assert len(evaluations) == 3 and evaluations[-1]["eval_accuracy"] == pytest.approx(score.accuracy)
    assert len({line["eval_accuracy"] for line in evaluations}) > 1


def test_accuracy_is_logged_and_the_plot_is_per_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def as_svg(metrics: Any, path: Path, **options: Any) -> None:
        plot_loss(metrics, path.with_suffix(".svg"), **options)

    monkeypatch.setattr(report, "plot_loss", as_svg)
    config, logger = training.TrainConfig(max_steps=2, **SETTINGS), logger_named("tensorboard")
    options = {"eval_texts": texts(9, seed=2), "progress": False, "callbacks": [logger]}
    _, score = train_classifier(judge(), texts(), config, tmp_path, **options)
    (event,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("eval_accuracy")
    assert score is not None and (event.step, event.value) == (2, pytest.approx(score.accuracy))
    assert "<!-- loss (nats per text) -->" in (tmp_path / "loss.svg").read_text()
    plot_loss(training.read_metrics(tmp_path / "metrics.jsonl"), tmp_path / "tokens.svg")
    assert "<!-- loss (nats per token) -->" in (tmp_path / "tokens.svg").read_text()


def test_micro_batches_give_the_step_of_one_batch(tmp_path: Path) -> None:
    runs = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        model = judge()
        options = SETTINGS | {"batch_size": batch_size, "gradient_accumulation": accumulation}
        config = training.TrainConfig(max_steps=3, **options)
        train_classifier(model, texts(), config, tmp_path / str(batch_size), progress=False)
        runs.append((list(losses(tmp_path / str(batch_size)).values()), model.score.weight))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-5)
    torch.testing.assert_close(runs[0][1], runs[1][1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    adapted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = training.TrainConfig(max_steps=8, **SETTINGS)

    def run(name: str, resume: bool = False) -> tuple[LlamaForSequenceClassification, Any]:
        model = judge()
        if adapted:
            lora.add(model, rank=2, dropout=0.5, target_modules="all-linear")
        found = train_classifier(
            model, texts(), config, tmp_path / name, eval_texts=texts(9, seed=2), resume=resume, progress=False
        )
        return model, found

    whole, (_, score) = run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(training.loop.Trainer, "unfinished", lambda self: self.step < 3)
        run("parts")
    parts, (result, again) = run("parts", resume=True)
    assert result.step == 8 and losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert again.confusion.tolist() == score.confusion.tolist()
    if adapted:
        assert (result.checkpoint / "adapter_model.safetensors").is_file()
    else:
        loaded = LlamaForSequenceClassification.from_pretrained(result.checkpoint, device="cpu")
        assert torch.equal(loaded.score.weight, whole.score.weight) and loaded.config.label_names == LABELS
    # A finished run that is resumed scores the held-out texts again.
    _, (_, finished) = run("whole", resume=True)
    assert finished.confusion.tolist() == score.confusion.tolist()


def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def sometimes(model: Any, *arguments: Any) -> Scored:
        calls.append(1)
        found = classification_score(model, *arguments)
        return found._replace(loss=found.loss * (float("nan") if len(calls) == 2 else 1.0))

    monkeypatch.setattr(classification, "classification_score", sometimes)
    model = judge()
    config = training.TrainConfig(max_steps=4, **SETTINGS)
    result, score = train_classifier(model, texts(), config, tmp_path, progress=False)
    assert (result.skipped, result.step, score) == (1, 4, None)
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_a_token_loss_still_refuses_a_classifier(token_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a LlamaForSequenceClassification; expected a LlamaForCausalLM"):
        training.train(judge(), token_file, training.TrainConfig(**SETTINGS), tmp_path)  # type: ignore[arg-type]


def test_batches_are_padded_and_found_again() -> None:
    data = texts(7)
    batches = LabelledBatches(data, batch_size=3, padding=0)
    batch = batches.batch(1)
    assert batch.ids.shape[0] == 3 and batch.labels.shape == (3,) and batch.learned == 3
    again = LabelledBatches(data, batch_size=3, padding=0)
    again.batch(9)
    assert again.batch(1).ids.tolist() == batch.ids.tolist()
    assert batches.tokens_before(7) == sum(len(text.ids) for text in data) * 3
    others = [*data[:-1], LabelledText(data[-1].ids, 2 - data[-1].label)]
    assert LabelledBatches(others, batch_size=3, padding=0).fingerprint != batches.fingerprint
    assert pad_texts(data[:2], 0)[0].shape == (2, max(len(text.ids) for text in data[:2]))


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (LabelledText(np.array([5]), 3), {}, "label 3 is not among the 3 labels"),
        (LabelledText(np.array([64]), 1), {}, "outside the model's vocabulary of 64"),
        (LabelledText(np.arange(1, 12) % 60, 1), {"max_position_embeddings": 8}, "11 tokens, the model's context is 8"),
        (LabelledText(np.array([0, 0]), 1), {}, "no token to classify"),
    ],
)
def test_texts_that_do_not_fit_the_model(text: LabelledText, changes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train_classifier(judge(**changes), [text], training.TrainConfig(**SETTINGS), tmp_path)


def test_scores_need_texts_and_padding() -> None:
    with pytest.raises(ValueError, match="no texts to evaluate on"):
        evaluate_classifier(judge(), iter(()))  # type: ignore[arg-type]
    for batch_size in (-1, 0):
        with pytest.raises(ValueError, match=f"batch_size is {batch_size}; expected at least 1"):
            evaluate_classifier(judge(), texts(3), batch_size=batch_size)
    with pytest.raises(ValueError, match="label 4 is not among the 3 labels"):
        evaluate_classifier(judge(), [LabelledText(np.array([5]), 4)])
    bare = LlamaForSequenceClassification(CONFIG.replace(num_labels=3))
    with pytest.raises(ValueError, match="no pad_token_id"):
        evaluate_classifier(bare, texts(3))
    with pytest.warns(UserWarning, match="no text to train on has the label unsure"), pytest.raises(FileExistsError):
        train_classifier(
            judge(), [text for text in texts() if text.label < 2], training.TrainConfig(**SETTINGS), __file__
        )


def test_the_head_is_new_and_the_decoder_shared() -> None:
    base = LlamaForCausalLM(CONFIG, seed=0)
    made = LlamaForSequenceClassification.from_causal_lm(base, LABELS, pad_token_id=7, seed=3)
    assert made.model is base.model and made.score.weight.shape == (3, 32)
    assert made.score.weight.std().item() == pytest.approx(CONFIG.initializer_range, rel=0.4)
    again = LlamaForSequenceClassification.from_causal_lm(base, LABELS, seed=3)
    assert torch.equal(made.score.weight, again.score.weight)
    assert made.config.id2label == dict(enumerate(LABELS)) and made.config.pad_token_id == 7
    assert made.config.problem_type == "single_label_classification"
    for labels in (["one"], ["a", "b", "a"]):
        with pytest.raises(ValueError, match="expected at least 2 different ones"):
            LlamaForSequenceClassification.from_causal_lm(base, labels)


def test_labels_are_kept_by_the_config() -> None:
    config = LlamaConfig(id2label={"0": "ham", "1": "spam"})  # type: ignore[dict-item]  # as JSON has it
    assert (config.num_labels, config.label_names) == (2, ["ham", "spam"])
    assert LlamaConfig.from_dict(config.to_dict()) == config
    assert config.to_dict()["label2id"] == {"ham": 0, "spam": 1}
    assert config.replace(num_labels=3).label_names == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert config.replace(num_labels=2).label_names == ["ham", "spam"]
    assert LlamaConfig(id2label={0: "LABEL_0", 1: "LABEL_1"}) == LlamaConfig()
    with pytest.raises(ValueError, match=r"id2label is .*expected an object of numbers and names"):
        LlamaConfig(id2label={"ham": "0"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"id2label names the ids \[0, 2\]; expected 0 to 1"):
        LlamaConfig(id2label={0: "ham", 2: "spam"})  # the name of id 2 would be lost


def rows(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), "utf-8")
    return path


def test_rows_of_every_kind(tokenizer: Tokenizer, tmp_path: Path) -> None:
    values = [{"text": f"what is {n}", "label": n % 2} for n in range(4)]
    (tmp_path / "list.json").write_text(json.dumps(values))
    parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "rows.parquet")
    for path in (rows(tmp_path / "rows.jsonl", values), tmp_path / "list.json", tmp_path / "rows.parquet"):
        found = read_labelled([path], tokenizer, 5)
        assert found.labels == ["0", "1"] and [text.label for text in found.texts] == [0, 1, 0, 1]
        assert found.texts[0].ids.tolist() == tokenizer("what is 0", truncation=True, max_length=5)["input_ids"]
        assert found.truncated == sum(len(tokenizer(value["text"])["input_ids"]) > 5 for value in values)


def test_labels_are_sorted_by_value(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for given, expected in (
        ([10, 9, 2], ["2", "9", "10"]),
        (["b", "a10", "a9"], ["a10", "a9", "b"]),
        ([True, False], ["False", "True"]),
    ):
        path = rows(tmp_path / "rows.jsonl", [{"t": "what", "l": label} for label in given])
        found = read_labelled([path], tokenizer, 8, text_field="t", label_field="l")
        assert found.labels == expected
        assert [found.labels[text.label] for text in found.texts] == list(map(str, given))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "up"}, r"line 2: expected an object with 'text' and 'label'; its fields are \['text'\]"),
        ({"text": "up", "label": None}, "line 2: expected an object"),
        ("up", "line 2: expected an object with .*; its fields are str"),
        ({"text": ["up"], "label": "a"}, r"line 2: 'text' is \['up'\]; expected a text"),
        ({"text": "up", "label": 0.5}, "line 2: 'label' is 0.5; expected a string, an integer or a boolean"),
        ({"text": "", "label": "a"}, "line 2: 'text' is '', which has no token to classify"),
        ({"text": "\ud800", "label": "a"}, "line 2: lone surrogate"),
    ],
)
def test_rows_that_cannot_be_used(row: Any, message: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    good = [{"text": "what", "label": "a"}, {"text": "is", "label": "b"}]
    path = rows(tmp_path / "rows.jsonl", [good[0], row, good[1]])
    with pytest.raises(ValueError, match=message):
        read_labelled([path], tokenizer, 8)
    with pytest.warns(UserWarning, match="skipped 1 row"):
        assert len(read_labelled([path], tokenizer, 8, on_error="skip").texts) == 2


def test_labels_that_cannot_be_used(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for labels, message in (
        (["a", 1], "'label' holds 'a', 1; expected labels of one kind|'label' holds 1, 'a'"),
        (["a", "a"], "'label' holds a; expected at least 2 labels"),
    ):
        path = rows(tmp_path / "rows.jsonl", [{"text": "what", "label": label} for label in labels])
        with pytest.raises(ValueError, match=message):
            read_labelled([path], tokenizer, 8)
    with pytest.raises(ValueError, match="line 1: 'label' is 'a'; expected one of x, y"):
        read_labelled([path], tokenizer, 8, labels=["x", "y"])
    (tmp_path / "rows.csv").write_text("text,label\n")
    with pytest.raises(ValueError, match=r"rows\.csv: expected rows with a text and a label"):
        read_labelled([tmp_path / "rows.csv"], tokenizer, 8)
    with pytest.raises(ValueError, match="no row has a text and a label"):
        read_labelled([rows(tmp_path / "none.jsonl", [])], tokenizer, 8, labels=["x", "y"])


def test_held_out_texts_are_drawn_at_random_and_found_again() -> None:
    data = texts(40)
    train, held_out = split_texts(data, 0.25, seed=3)
    assert (len(train), len(held_out)) == (30, 10) and split_texts(data, 0.25, seed=3)[1] == held_out
    assert held_out != data[30:] and split_texts(data, 0.25, seed=4)[1] != held_out
    assert split_texts(data, 0.0, seed=3) == (data, [])
    with pytest.raises(ValueError, match="1 texts are too few"):
        split_texts(data[:1], 0.1, seed=0)


def test_the_padding_is_an_id_of_the_model(tokenizer: Tokenizer) -> None:
    end = tokenizer.eos_id
    assert end is not None
    assert padding_for(tokenizer, None, (), tokenizer.vocab_size) == end
    assert padding_for(tokenizer, 3, (), tokenizer.vocab_size) == 3
    with pytest.raises(ValueError, match="neither tokenizer nor model name a padding"):
        padding_for(tokenizer, -1, (), end)
