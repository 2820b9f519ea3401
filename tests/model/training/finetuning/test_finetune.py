"""Fine-tuning runs: what is learned and held out, how a run resumes, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama._files import locked
from bpe_llama.model import (
    LlamaForSequenceClassification,
    lora,
    quantize,
    training,
)
from bpe_llama.model.training import DataConfig
from bpe_llama.model.training.finetuning.conversations import find_formats, read_conversations
from bpe_llama.model.training.finetuning.plain_text import write_tokens
from tests.model.training.helpers import FINETUNE_SETTINGS, SAME, SPELT, curve, fresh_for_text, write_rows, write_talks


def test_the_loss_of_examples_ignores_padding_and_masked_tokens(tokenizer: Tokenizer, talks: Path) -> None:
    more = write_talks(talks.with_name("more.jsonl"), [[("user", "is"), ("assistant", "a longer answer than these")]])
    examples = read_conversations([talks, more], tokenizer, 100).examples[-2:]
    model = fresh_for_text().eval()
    expected, count = 0.0, 0
    with torch.no_grad():
        for example in examples:  # one by one, unpadded, by the definition
            logits = model(torch.from_numpy(example.ids)[None]).logits[0].log_softmax(-1)
            for place in range(1, len(example.ids)):
                if example.labels[place] >= 0:
                    expected -= logits[place - 1, example.ids[place]].item()
                    count += 1
        assert training.evaluate_examples(model, examples, batch_size=2) == pytest.approx(expected / count, rel=1e-5)
    assert sum(example.learned for example in examples) == count


@pytest.mark.parametrize("kind", ["talks", "text"])
def test_only_the_adapter_is_trained(tokenizer: Tokenizer, talks: Path, tmp_path: Path, kind: str) -> None:
    texts = talks
    if kind == "text":
        texts = tmp_path / "notes.txt"
        texts.write_text("what is up and what is not up, and why is it so. " * 12)
    base = fresh_for_text().state_dict()
    model = lora.add(fresh_for_text(), rank=4)
    result = training.finetune(model, tokenizer, texts, training.TrainConfig(**FINETUNE_SETTINGS), tmp_path / "run")
    assert result.step == 6 and result.eval_loss is not None
    assert curve(tmp_path / "run")[-1][1] < curve(tmp_path / "run")[0][1] - 0.05
    for name, weight in model.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(weight, base[name.replace(".base_layer", "")]), name
    files = {"adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "training.json"}
    assert {path.name for path in result.checkpoint.iterdir()} == files  # nothing of the model
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        assert torch.equal(lora.load(fresh_for_text(), result.checkpoint).eval()(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True, "use_rslora": True, "target_modules": "all-linear"},
        {"modules_to_save": ["lm_head", "norm"], "target_modules": ["embed_tokens", "q_proj"]},
        {"trainable_token_indices": [3, 70], "init_lora_weights": "pissa"},
        {"bias": "all", "lora_bias": True, "biased": True},
    ],
    ids=str,
)
def test_interrupting_and_resuming_changes_no_loss(
    tokenizer: Tokenizer,
    talks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    config = training.TrainConfig(**(FINETUNE_SETTINGS | {"max_steps": 8, "gradient_accumulation": 2}))
    fields = {name: value for name, value in options.items() if name != "biased"}
    biases = dict.fromkeys(("attention_bias", "mlp_bias"), "biased" in options)

    def run(out: str, resume: bool = False) -> None:
        model = lora.add(fresh_for_text(**biases).to(dtype), rank=2, **fields)
        training.finetune(model, tokenizer, talks, config, tmp_path / out, resume=resume, progress=False)

    run("whole")
    with monkeypatch.context() as patch:  # as Ctrl-C does, at a known step
        patch.setattr(training.loop.Trainer, "unfinished", lambda self: self.step < 3)
        run("parts")
    run("parts", resume=True)
    assert [step for step, _ in curve(tmp_path / "parts")] == list(range(1, 9))
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


def test_quantized_weights_do_not_change_and_the_adapter_is_trained(
    tokenizer: Tokenizer, talks: Path, tmp_path: Path
) -> None:
    model = lora.add(quantize.quantize(fresh_for_text(), "int8"), rank=4)
    stored = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("base_layer.weight")}
    training.finetune(
        model, tokenizer, talks, training.TrainConfig(**FINETUNE_SETTINGS), tmp_path / "run", progress=False
    )
    assert stored and all(torch.equal(model.get_buffer(name), buffer) for name, buffer in stored.items())
    assert curve(tmp_path / "run")[-1][1] < curve(tmp_path / "run")[0][1]


def test_frozen_weights_keep_their_dtype(tokenizer: Tokenizer, talks: Path, tmp_path: Path) -> None:
    model = lora.add(fresh_for_text().to(torch.bfloat16), rank=2)
    training.finetune(
        model, tokenizer, talks, training.TrainConfig(**FINETUNE_SETTINGS), tmp_path / "run", progress=False
    )
    kinds = {name.rpartition(".")[2]: weight.dtype for name, weight in model.named_parameters()}
    assert kinds["lora_A"] == kinds["lora_B"] == torch.float32 and kinds["weight"] == torch.bfloat16


def test_epochs_become_steps(tokenizer: Tokenizer, talks: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(**(FINETUNE_SETTINGS | {"eval_fraction": 0.2}))  # 1 of 9 is held out
    model = lora.add(fresh_for_text(), rank=2)
    result = training.finetune(model, tokenizer, talks, config, tmp_path / "run", epochs=1.5, progress=False)
    assert result.step == 6  # 1.5 * 8 / 2
    lengths = [len(example.ids) for example in read_conversations([talks], tokenizer, 24).examples[:8]]
    assert 6 * 2 * min(lengths) <= result.tokens <= 6 * 2 * max(lengths)


@pytest.mark.parametrize("changes", [{}, {"packing": "best_fit"}, {"sequence_length": 60}], ids=str)
def test_epochs_of_plain_text_are_those_of_its_rows(
    tokenizer: Tokenizer, tmp_path: Path, changes: dict[str, Any]
) -> None:
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text("what is up, and why " * (1 + number % 2))
    config = training.TrainConfig(**FINETUNE_SETTINGS | {"batch_size": 1, "eval_fraction": 0.0} | changes)
    model = fresh_for_text(eos_token_id=tokenizer.eos_id)
    training.finetune(model, tokenizer, tmp_path / "*.txt", config, tmp_path / "run", epochs=1, progress=False)
    assert training.read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["epochs"] == 1.0


def test_finetuning_skips_invalid_rows_of_text_and_conversations(
    tokenizer: Tokenizer, talks: Path, tmp_path: Path
) -> None:
    config = training.TrainConfig(**FINETUNE_SETTINGS)
    plain = tmp_path / "plain.jsonl"
    plain.write_text("null\n" + '{"text": "up is up"}\n' * 30)
    talks.write_bytes(b"{\n[]\n" + talks.read_bytes())
    for path, count in ((plain, 1), (talks, 2)):
        with pytest.raises(ValueError, match=f"{path.name}, line 1: "):
            training.finetune(fresh_for_text(), tokenizer, path, config, tmp_path / "raised", progress=False)
        with pytest.warns(UserWarning, match=rf"skipped {count} rows? .*{path.name}, line 1: "):
            training.finetune(
                fresh_for_text(), tokenizer, path, config, tmp_path / path.stem, on_error="skip", progress=False
            )
    with pytest.raises(ValueError, match="on_error is 'no'"):
        training.finetune(fresh_for_text(), tokenizer, plain, config, tmp_path / "run", on_error="no", progress=False)


def test_invalid_arguments_are_refused_by_name(tokenizer: Tokenizer, talks: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(**FINETUNE_SETTINGS)
    plain = tmp_path / "plain.txt"
    plain.write_text("up")

    def refused(message: str, texts: Any = talks, tok: Tokenizer = tokenizer, **options: Any) -> None:
        model = options.pop("model", fresh_for_text())
        with pytest.raises(ValueError, match=message):
            training.finetune(model, tok, texts, config, tmp_path / "run", progress=False, **options)

    refused("the tokenizer has 270 ids, more than the model's 256", model=fresh_for_text(vocab_size=256))
    refused("epochs is 0, expected a positive number", epochs=0)
    refused(r"talks\.jsonl holds conversations and .*plain\.txt plain text", [talks, plain])
    refused("too few to train", plain)
    with pytest.raises(ValueError, match=r"packing is 'best_fit' .* which are for token files; expected 'concatenate'"):
        packed = dataclasses.replace(config, packing="best_fit")
        training.finetune(fresh_for_text(), tokenizer, talks, packed, tmp_path / "run", progress=False)
    bare = Tokenizer.train_from_iterator(["up"], vocab_size=257, progress=False)
    refused("need a tokenizer with a chat template", tok=bare)
    assert find_formats([talks], DataConfig()) == {talks: "messages"} and find_formats([plain], DataConfig()) == {
        plain: "text"
    }
    with pytest.raises(FileNotFoundError, match="absent"):
        training.finetune(fresh_for_text(), tokenizer, tmp_path / "absent*", config, tmp_path / "run")
    model = lora.add(fresh_for_text(), rank=2)
    training.finetune(model, tokenizer, talks, config, tmp_path / "done", progress=False)
    with pytest.raises(ValueError, match="holds a run already"):
        training.finetune(model, tokenizer, talks, config, tmp_path / "done", progress=False)
    with pytest.raises(ValueError, match="another rank"):
        other = lora.add(fresh_for_text(), rank=3)
        training.finetune(other, tokenizer, talks, config, tmp_path / "done", resume=True, progress=False)
    changed = tmp_path / "changed.jsonl"
    changed.write_text(talks.read_text().replace("u", "v", 1))
    for texts, options in ((changed, {}), (talks, {"train_on": "all"})):
        again: dict[str, Any] = {"resume": True, "progress": False, **options}
        with pytest.raises(ValueError, match=r"the data was \d+ texts of \d+ tokens \(sha256 \w+\) and is \d+ texts"):
            training.finetune(lora.add(fresh_for_text(), rank=2), tokenizer, texts, config, tmp_path / "done", **again)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.parquet"])
def test_text_with_rendered_chats_is_parsed_or_warned_about(tokenizer: Tokenizer, tmp_path: Path, name: str) -> None:
    config = training.TrainConfig(**FINETUNE_SETTINGS)
    texts = [SPELT * 6 + "<|endoftext|>", SPELT * 8]
    path = tmp_path / name
    if name == "a.txt":
        path.write_text("".join(texts))
    else:
        write_rows(path, [{"text": text} for text in texts])

    def tokens(out: str, **options: Any) -> list[int]:
        training.finetune(fresh_for_text(), tokenizer, path, config, tmp_path / out, progress=False, **options)
        return np.load(tmp_path / out / "tokens.npy").tolist()

    with pytest.warns(UserWarning, match=r"looks like special tokens .*\('<\|end\|>' 28 times, .*--parse-special"):
        plain = tokens("plain")
    end = [tokenizer.eos_id]
    documents = ["".join(texts)] if name == "a.txt" else texts
    assert plain == [token for text in documents for token in tokenizer.encode(text) + end]
    parsed = tokens("parsed", parse_special=True)
    assert parsed == tokenizer.encode(texts[0] + texts[1] + "<|endoftext|>", allowed_special="all")
    assert np.load(tmp_path / "parsed" / "tokens.npy").dtype == np.uint16


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.parquet"])
@pytest.mark.parametrize("parse_special", [False, True])
def test_plain_text_begins_with_the_tokenizers_special_tokens(
    tokenizer: Tokenizer, tmp_path: Path, name: str, parse_special: bool
) -> None:
    eos = tokenizer.eos_id
    framed = Tokenizer(tokenizer.with_ends(eos - 1, eos, None, None).with_template(eos - 1, None))
    config = training.TrainConfig(**FINETUNE_SETTINGS)
    texts = ["what is up " * 20, "and why is it so " * 20]
    if name == "a.txt":
        (tmp_path / name).write_text(texts[0])
        (tmp_path / "b.txt").write_text(texts[1])
    else:
        write_rows(tmp_path / name, [{"text": text} for text in texts])
    files = [*tmp_path.iterdir()]
    training.finetune(
        fresh_for_text(), framed, sorted(files), config, tmp_path / "out", parse_special=parse_special, progress=False
    )
    expected = [token for text in texts for token in [eos - 1, *tokenizer.encode(text), eos]]
    assert np.load(tmp_path / "out" / "tokens.npy").tolist() == expected
    if parse_special:  # what the text says itself is not said twice
        begin = framed.id_to_token(eos - 1)
        (tmp_path / "c.txt").write_text(f"{begin}{texts[0]}<|endoftext|>")
        training.finetune(
            fresh_for_text(), framed, tmp_path / "c.txt", config, tmp_path / "out2", parse_special=True, progress=False
        )
        assert np.load(tmp_path / "out2" / "tokens.npy").tolist() == [eos - 1, *tokenizer.encode(texts[0]), eos]


def test_files_of_no_format_and_invalid_options_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = training.TrainConfig(**FINETUNE_SETTINGS)
    rows = write_rows(tmp_path / "a.jsonl", [{"question": "what", "answer": "up"}])
    talks = write_rows(tmp_path / "b.jsonl", [SAME["messages"]] * 4)
    plain = tmp_path / "c.txt"
    plain.write_text("up is up " * 40)

    def refused(message: str, path: Path, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            training.finetune(fresh_for_text(), tokenizer, path, config, tmp_path / "run", progress=False, **options)

    refused(
        r"a\.jsonl, line 1: an object with the fields \['answer', 'question'\]; expected the fields of one of: "
        r"messages \(messages\); sharegpt \(conversations\); alpaca \(instruction, output\); "
        r"prompt-completion \(prompt, completion\); text \(text\)",
        rows,
    )
    refused(r"a\.jsonl, line 1: expected an object with a list of 'messages'; its fields are", rows, format="messages")
    refused("format is 'chatml'; expected auto, messages, sharegpt", talks, format="chatml")
    refused("train_on is 'user'; expected assistant, last, all", talks, train_on="user")
    refused("train_on is 'last', and all of plain text is learned", plain, train_on="last")
    refused(r"c\.txt: format is 'alpaca'; expected a \.json, \.jsonl or \.parquet file", plain, format="alpaca")
    refused(r'b\.jsonl, line 1: no field "text"', talks, format="text")


def test_the_first_example_is_printed(
    tokenizer: Tokenizer,
    talks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = training.TrainConfig(**FINETUNE_SETTINGS | {"max_steps": 1})
    training.finetune(fresh_for_text(), tokenizer, talks, config, tmp_path / "run", show_example=True, progress=False)
    shown = capsys.readouterr().err
    assert (
        "18 tokens, 5 of them learned (in brackets)" in shown and "<|assistant|>⟦up<|end|>⟧<|user|>is<|end|>" in shown
    )
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    (tmp_path / "a.txt").write_text("what is up " * 50)
    training.finetune(
        fresh_for_text(), tokenizer, tmp_path / "a.txt", config, tmp_path / "b", show_example=True, progress=False
    )
    shown = capsys.readouterr().err
    assert "23 of them learned (coloured)" in shown and "\x1b[30;48;5;" in shown and "⟦" not in shown


def test_a_locked_folder_is_refused_before_its_tokens_are_replaced(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("what is up " * 50)
    config = training.TrainConfig(**FINETUNE_SETTINGS)
    with locked(tmp_path / "run"), pytest.raises(ValueError, match="another run is going on in this folder"):
        training.finetune(fresh_for_text(), tokenizer, tmp_path / "a.txt", config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "tokens.npy").exists()


def test_weights_that_no_checkpoint_would_hold_are_not_trained(
    tokenizer: Tokenizer, talks: Path, tmp_path: Path
) -> None:
    config = training.TrainConfig(**FINETUNE_SETTINGS)

    def refused(model: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            training.finetune(model, tokenizer, talks, config, tmp_path / "out", progress=False)
        assert not [*(tmp_path / "out").glob("step-*")]

    model = lora.add(fresh_for_text(), rank=2)
    model.model.norm.weight.requires_grad_(True)
    refused(model, r"model\.norm\.weight: trained beside adapters.*modules_to_save")
    merged = lora.add(fresh_for_text(), rank=2)
    lora.merge(merged)
    refused(merged, "adapters are merged into the weights; unmerge them")
    classifier = LlamaForSequenceClassification(fresh_for_text().config)
    refused(classifier, "the model is a LlamaForSequenceClassification; expected a LlamaForCausalLM")
    saved = lora.add(fresh_for_text(), rank=2, modules_to_save=["norm"])
    training.finetune(saved, tokenizer, talks, config, tmp_path / "out", progress=False)


@pytest.mark.parametrize("parse_special", [False, True])
@pytest.mark.parametrize(("name", "count"), [("txt", 1), ("txt", 3), ("jsonl", 3)])
def test_files_without_text_are_named(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int, parse_special: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [Path(f"{number}.{name}") for number in range(count)]
    for file in files:
        file.write_text("\n" if name == "jsonl" else "")
    named = f"^0.{name}: no text" if count == 1 else f"^0.{name} to 2.{name}: no text to learn$"
    with pytest.raises(ValueError, match=named):
        write_tokens(files, tokenizer, tmp_path / "tokens.npy", DataConfig(parse_special=parse_special), progress=False)


@pytest.mark.parametrize("beside", ["alone", "parsed", "rows"])
def test_plain_text_keeps_its_lines(beside: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Each of the three ways in which plain text is read."""
    text = "what is\n\nup\nand why " * 30
    (tmp_path / "a.txt").write_bytes(text.encode())
    files = [tmp_path / "a.txt"]
    if beside == "rows":
        files.append(write_rows(tmp_path / "b.json", [{"text": "is it so"}]))
    write_tokens(
        files, tokenizer, tmp_path / "tokens.npy", DataConfig(parse_special=beside == "parsed"), progress=False
    )
    ids = training.open_tokens(tmp_path / "tokens.npy").tolist()
    assert tokenizer.decode(ids[: ids.index(tokenizer.eos_id)]) == text
