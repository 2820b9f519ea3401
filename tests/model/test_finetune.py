"""Fine-tuning: what is learned, what is held out, how a run resumes, and what is refused."""

from __future__ import annotations

import copy
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from bpe_llama import Tokenizer
from bpe_llama.model import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    lora,
    quantize,
    training,
)
from bpe_llama.model.training import DataConfig, Example, ExampleBatches
from bpe_llama.model.training.data.conversations import find_formats, read_conversations
from bpe_llama.model.training.lock import locked

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SETTINGS: dict[str, Any] = {
    "max_steps": 6,
    "sequence_length": 24,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 1,
    "log_every": 1,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def gradients() -> Iterator[None]:
    with torch.enable_grad():
        yield


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    special = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"]
    tok = Tokenizer.train_from_iterator(
        ["what is up, and why is it so"] * 3, vocab_size=270, special_tokens=special, progress=False
    )
    tok.chat_template = TEMPLATE
    return tok


def fresh(**changes: Any) -> LlamaForCausalLM:
    shape = {"vocab_size": 270, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**(shape | heads | changes)), seed=0)


def write_talks(path: Path, talks: list[list[tuple[str, str]]]) -> Path:
    lines = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks]
    path.write_text("".join(json.dumps(line) + "\n\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    return write_talks(
        tmp_path / "talks.jsonl",
        [[("user", f"what is {n}"), ("assistant", "up"), ("user", "is"), ("assistant", "up is")] for n in range(9)],
    )


def losses(out: Path) -> list[tuple[float, float]]:
    return [(line["step"], line["loss"]) for line in training.read_metrics(out / "metrics.jsonl") if "loss" in line]


def test_only_answers_are_learned(tokenizer: Tokenizer, talks: Path) -> None:
    found = read_conversations([talks], tokenizer, 100)
    assert len(found.examples) == 9 and found.truncated == found.dropped == 0
    example = found.examples[3]
    assert tokenizer.decode(example.ids) == (
        "<|user|>what is 3<|end|><|assistant|>up<|end|><|user|>is<|end|><|assistant|>up is<|end|>"
    )
    assert tokenizer.decode(example.labels[example.labels >= 0]) == "up<|end|>up is<|end|>"
    short = read_conversations([talks], tokenizer, len(example.ids) - 1)
    assert short.truncated == 9 and all(len(example.ids) <= len(short.examples[0].ids) for example in short.examples)
    with pytest.raises(ValueError, match="no conversation has an answer within its first 3 tokens"):
        read_conversations([talks], tokenizer, 3)


@pytest.mark.parametrize("name", ["packed.jsonl.gz", "packed.ndjson.zst"])
def test_compressed_conversations_are_conversations(tokenizer: Tokenizer, talks: Path, name: str) -> None:
    packed = talks.with_name(name)
    plain = talks.read_bytes()
    whole = gzip.compress(plain) if name.endswith(".gz") else pyarrow.compress(plain, codec="zstd", asbytes=True)
    packed.write_bytes(whole)
    assert set(find_formats([packed, talks], DataConfig()).values()) == {"messages"}
    found, same = (read_conversations([path], tokenizer, 100).examples for path in (packed, talks))
    assert [example.ids.tolist() for example in found] == [example.ids.tolist() for example in same]
    for damaged in (whole[:-9], b"not packed", whole[:10] + b"\xff" * 30):
        packed.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name}: damaged compressed data"):
            read_conversations([packed], tokenizer, 100)


def test_a_line_nested_beyond_measure_is_refused(tokenizer: Tokenizer, talks: Path) -> None:
    talks.write_text('{"messages": ' + "[" * 200_000 + "\n")
    with pytest.raises(ValueError, match=r"talks\.jsonl, line 1: not valid JSON"):
        read_conversations([talks], tokenizer, 100)


def test_an_examples_loss_ignores_padding_and_what_is_not_learned(tokenizer: Tokenizer, talks: Path) -> None:
    more = write_talks(talks.with_name("more.jsonl"), [[("user", "is"), ("assistant", "a longer answer than these")]])
    examples = read_conversations([talks, more], tokenizer, 100).examples[-2:]
    model = fresh().eval()
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


@given(count=st.integers(1, 9), batch_size=st.integers(1, 5), seed=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_an_epoch_visits_each_example_once(count: int, batch_size: int, seed: int) -> None:
    examples = [Example(np.full(n + 2, n), np.full(n + 2, n)) for n in range(count)]
    batches = ExampleBatches(examples, batch_size=batch_size, seed=seed)
    seen, tokens = [], 0
    for index in range(3 * count):
        assert batches.tokens_before(index) == tokens
        ids, labels = batches.inputs_and_labels(index)
        tokens += int((labels >= 0).sum())
        seen += ids.max(axis=1).tolist()
        again = ExampleBatches(examples, batch_size=batch_size, seed=seed).inputs_and_labels(index)
        assert np.array_equal(again[0], ids) and np.array_equal(again[1], labels)
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


@pytest.mark.parametrize("kind", ["talks", "text"])
def test_the_adapter_learns_and_nothing_else(tokenizer: Tokenizer, talks: Path, tmp_path: Path, kind: str) -> None:
    texts = talks
    if kind == "text":
        texts = tmp_path / "notes.txt"
        texts.write_text("what is up and what is not up, and why is it so. " * 12)
    base = fresh().state_dict()
    model = lora.add(fresh(), rank=4)
    result = training.finetune(model, tokenizer, texts, training.TrainConfig(**SETTINGS), tmp_path / "run")
    assert result.step == 6 and result.eval_loss is not None
    assert losses(tmp_path / "run")[-1][1] < losses(tmp_path / "run")[0][1] - 0.05
    for name, weight in model.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(weight, base[name.replace(".base_layer", "")]), name
    files = {"adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "training.json"}
    assert {path.name for path in result.checkpoint.iterdir()} == files  # nothing of the model
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        assert torch.equal(lora.load(fresh(), result.checkpoint).eval()(ids).logits, model.eval()(ids).logits)


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
def test_stopping_and_going_on_changes_no_loss(
    tokenizer: Tokenizer,
    talks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    config = training.TrainConfig(**(SETTINGS | {"max_steps": 8, "gradient_accumulation": 2}))
    fields = {name: value for name, value in options.items() if name != "biased"}
    biases = dict.fromkeys(("attention_bias", "mlp_bias"), "biased" in options)

    def run(out: str, resume: bool = False) -> None:
        model = lora.add(fresh(**biases).to(dtype), rank=2, **fields)
        training.finetune(model, tokenizer, talks, config, tmp_path / out, resume=resume, progress=False)

    run("whole")
    with monkeypatch.context() as patch:  # as Ctrl-C does, at a known step
        patch.setattr(training.loop.Trainer, "unfinished", lambda self, step, elapsed: step < 3)
        run("parts")
    run("parts", resume=True)
    assert [step for step, _ in losses(tmp_path / "parts")] == list(range(1, 9))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_quantised_weights_stay_and_the_adapter_learns(tokenizer: Tokenizer, talks: Path, tmp_path: Path) -> None:
    model = lora.add(quantize.quantize(fresh(), "int8"), rank=4)
    stored = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("base_layer.weight")}
    training.finetune(model, tokenizer, talks, training.TrainConfig(**SETTINGS), tmp_path / "run", progress=False)
    assert stored and all(torch.equal(model.get_buffer(name), buffer) for name, buffer in stored.items())
    assert losses(tmp_path / "run")[-1][1] < losses(tmp_path / "run")[0][1]


def test_what_is_frozen_keeps_its_number_format(tokenizer: Tokenizer, talks: Path, tmp_path: Path) -> None:
    model = lora.add(fresh().to(torch.bfloat16), rank=2)
    training.finetune(model, tokenizer, talks, training.TrainConfig(**SETTINGS), tmp_path / "run", progress=False)
    kinds = {name.rpartition(".")[2]: weight.dtype for name, weight in model.named_parameters()}
    assert kinds["lora_A"] == kinds["lora_B"] == torch.float32 and kinds["weight"] == torch.bfloat16


def test_epochs_become_steps(tokenizer: Tokenizer, talks: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(**(SETTINGS | {"eval_fraction": 0.2}))  # 1 of 9 is held out
    model = lora.add(fresh(), rank=2)
    result = training.finetune(model, tokenizer, talks, config, tmp_path / "run", epochs=1.5, progress=False)
    assert result.step == 6  # 1.5 * 8 / 2
    lengths = [len(example.ids) for example in read_conversations([talks], tokenizer, 24).examples[:8]]
    assert 6 * 2 * min(lengths) <= result.tokens <= 6 * 2 * max(lengths)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": 3}', r"talks\.jsonl, line 3: expected an object with a list of 'messages'"),
        ("[1]", r"talks\.jsonl, line 3: expected an object"),
        ('{"messages": [', r"talks\.jsonl, line 3: not valid JSON"),
        ('{"messages": [{"content": "x"}]}', r"line 3: message 0 is .*; expected a mapping with a 'role'"),
        ('{"messages": [{"role": "user", "content": "x"}]}', r"line 3: no message has the role 'assistant'"),
        ("\udcff", r"talks\.jsonl, line 3: not UTF-8"),
        ("null", r"talks\.jsonl, line 3: expected an object"),
        ('{"messages": null}', r"talks\.jsonl, line 3: expected an object with a list of 'messages'"),
        (
            r'{"messages": [{"role": "user", "content": "is"}, {"role": "assistant", "content": "up \ud83d"}]}',
            r"talks\.jsonl, line 3: lone surrogate \\ud83d in 'messages'",
        ),
        ("\ufeff" + '{"messages": []}', r"talks\.jsonl, line 3: not valid JSON \(Unexpected UTF-8 BOM"),
    ],
)
def test_bad_lines_are_named_or_skipped(tokenizer: Tokenizer, tmp_path: Path, line: str, message: str) -> None:
    talk = [("user", "is"), ("assistant", "up")]
    path = write_talks(tmp_path / "talks.jsonl", [talk])
    with path.open("ab") as file:
        file.write(line.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read_conversations([path], tokenizer, 24)
    good = write_talks(tmp_path / "good.jsonl", [talk] * 2)
    path.write_bytes(path.read_bytes() + b"\n" + write_talks(tmp_path / "more.jsonl", [talk]).read_bytes())
    with pytest.warns(UserWarning, match=f"skipped 1 row without text; the first: .*{message}"):
        found = read_conversations([path], tokenizer, 24, on_error="skip")
    expected = read_conversations([good], tokenizer, 24)
    assert [example.ids.tolist() for example in found.examples] == [
        example.ids.tolist() for example in expected.examples
    ]


def test_a_byte_order_mark_is_no_part_of_a_conversation(tokenizer: Tokenizer, talks: Path) -> None:
    plain = read_conversations([talks], tokenizer, 24)
    talks.write_bytes(b"\xef\xbb\xbf" + talks.read_bytes().replace(b"what", rb"what \ud83d\ude00 \\ud83d"))
    assert find_formats([talks], DataConfig()) == {talks: "messages"}
    assert len(read_conversations([talks], tokenizer, 24).examples) == len(plain.examples)


def test_finetuning_skips_rows_of_either_kind(tokenizer: Tokenizer, talks: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(**SETTINGS)
    plain = tmp_path / "plain.jsonl"
    plain.write_text("null\n" + '{"text": "up is up"}\n' * 30)
    talks.write_bytes(b"{\n[]\n" + talks.read_bytes())
    for path, count in ((plain, 1), (talks, 2)):
        with pytest.raises(ValueError, match=f"{path.name}, line 1: "):
            training.finetune(fresh(), tokenizer, path, config, tmp_path / "raised", progress=False)
        with pytest.warns(UserWarning, match=rf"skipped {count} rows? .*{path.name}, line 1: "):
            training.finetune(fresh(), tokenizer, path, config, tmp_path / path.stem, on_error="skip", progress=False)
    with pytest.raises(ValueError, match="on_error is 'no'"):
        training.finetune(fresh(), tokenizer, plain, config, tmp_path / "run", on_error="no", progress=False)


def test_bad_requests_are_named(tokenizer: Tokenizer, talks: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(**SETTINGS)
    plain = tmp_path / "plain.txt"
    plain.write_text("up")

    def refused(message: str, texts: Any = talks, tok: Tokenizer = tokenizer, **options: Any) -> None:
        model = options.pop("model", fresh())
        with pytest.raises(ValueError, match=message):
            training.finetune(model, tok, texts, config, tmp_path / "run", progress=False, **options)

    refused("the tokenizer has 270 ids, more than the model's 256", model=fresh(vocab_size=256))
    refused("epochs is 0, expected a positive number", epochs=0)
    refused(r"talks\.jsonl holds conversations and .*plain\.txt plain text", [talks, plain])
    refused("too few to train", plain)
    bare = Tokenizer.train_from_iterator(["up"], vocab_size=257, progress=False)
    refused("need a tokenizer with a chat template", tok=bare)
    assert find_formats([talks], DataConfig()) == {talks: "messages"} and find_formats([plain], DataConfig()) == {plain: "text"}
    with pytest.raises(FileNotFoundError, match="absent"):
        training.finetune(fresh(), tokenizer, tmp_path / "absent*", config, tmp_path / "run")
    model = lora.add(fresh(), rank=2)
    training.finetune(model, tokenizer, talks, config, tmp_path / "done", progress=False)
    with pytest.raises(ValueError, match="holds a run already"):
        training.finetune(model, tokenizer, talks, config, tmp_path / "done", progress=False)
    with pytest.raises(ValueError, match="another rank"):
        other = lora.add(fresh(), rank=3)
        training.finetune(other, tokenizer, talks, config, tmp_path / "done", resume=True, progress=False)
    changed = tmp_path / "changed.jsonl"
    changed.write_text(talks.read_text().replace("u", "v", 1))
    for texts, options in ((changed, {}), (talks, {"train_on": "all"})):
        again: dict[str, Any] = {"resume": True, "progress": False, **options}
        with pytest.raises(ValueError, match=r"the data was \d+ texts of \d+ tokens \(sha256 \w+\) and is \d+ texts"):
            training.finetune(lora.add(fresh(), rank=2), tokenizer, texts, config, tmp_path / "done", **again)


def test_bad_examples_are_named() -> None:
    good = np.arange(4)
    for ids, labels, message in (
        (good, good[:3], "labels"),
        (np.arange(99), np.arange(99), "has 99 tokens"),
        (good, np.full(4, -100), "no token to learn"),
        (good, np.array([0, -100, -100, -100]), "no token to learn"),
        (good + 300, good, "token 303 is outside"),
        (good - 1, good, "token -1 is outside"),
    ):
        with pytest.raises(ValueError, match=message):
            training.train_on_examples(fresh(), [Example(ids, labels)], training.TrainConfig(**SETTINGS), "unused")
    with pytest.raises(ValueError, match="no examples"):
        training.train_on_examples(fresh(), [], training.TrainConfig(**SETTINGS), "unused")
    with pytest.raises(ValueError, match="no examples"):
        training.evaluate_examples(fresh(), [])


# ---- the formats of data files ----

TALK = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "up"}]
SPELT = "<|user|>what<|end|><|assistant|>up<|end|>"
SHAREGPT = [{"from": "human", "value": "what"}, {"from": "gpt", "value": "up"}]
SAME = {
    "messages": {"id": 7, "messages": TALK},
    "text parts": {"messages": [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in TALK]},
    "sharegpt": {"conversations": SHAREGPT, "source": "x"},
    "sharegpt with roles": {"conversations": TALK},
    "alpaca": {"instruction": "what", "input": "", "output": "up"},
    "prompt-completion": {"prompt": TALK[:1], "completion": TALK[1:]},
}


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Write rows in the form that a name asks for."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def learned_text(tokenizer: Tokenizer, example: Example) -> str:
    return tokenizer.decode(example.labels[example.labels >= 0])


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.ndjson.gz", "a.json.gz"])
@pytest.mark.parametrize("kind", SAME)
def test_every_format_in_every_file_is_the_same_conversation(
    tokenizer: Tokenizer, tmp_path: Path, kind: str, name: str
) -> None:
    rows = [SAME[kind]] * 3
    path = tmp_path / name
    if name == "a.json.gz":
        path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(rows).encode()))
    else:
        write_rows(path, rows)
    found = read_conversations([path], tokenizer, 100)
    assert [tokenizer.decode(example.ids) for example in found.examples] == [SPELT] * 3
    assert {learned_text(tokenizer, example) for example in found.examples} == {"up<|end|>"}
    forced = read_conversations(
        [path], tokenizer, 100, format=kind.split(" ")[0] if kind != "text parts" else "messages"
    )
    assert [example.ids.tolist() for example in forced.examples] == [example.ids.tolist() for example in found.examples]


def test_a_json_file_may_hold_lines_or_one_row(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for count in (1, 3):
        path.write_text(f"{json.dumps(SAME['messages'])}\n" * count)
        assert len(read_conversations([path], tokenizer, 100).examples) == count
    for text, message in (
        ("[1, 2", r"a\.json: not valid JSON"),
        ("[]", r"a\.json: holds no row that is an object"),
        ('[{"a": 1}]', r"a\.json, row 0: an object with the fields \['a'\]; expected the fields of one of: messages"),
        ("[3]", r"a\.json, row 0: int; expected"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_conversations([path], tokenizer, 100)
    path.write_bytes(b"[\xff]")
    with pytest.raises(ValueError, match=r"a\.json: not UTF-8 \(invalid start byte at byte 1\)"):
        read_conversations([path], tokenizer, 100)


TOOLS = [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"type": "function", "function": {"name": "sky", "arguments": {"at": "noon"}}}
TOOL_TEMPLATE = (
    "{{ tone }}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("as_text", [False, True])
def test_tools_and_calls_reach_the_template_as_transformers_gives_them(
    tokenizer: Tokenizer, tmp_path: Path, name: str, as_text: bool
) -> None:
    transformers_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [
        {"role": "user", "content": "what"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "up"},
        {"role": "assistant", "content": "is up", "weight": 0},
    ]
    row = {
        "messages": messages,
        "tools": json.dumps(TOOLS) if as_text else TOOLS,
        "chat_template_kwargs": {"tone": "!"},
    }
    tok = Tokenizer.train_from_iterator(
        ["up"], vocab_size=261, special_tokens=list(tokenizer.special_tokens)[:4], progress=False
    )
    tok.chat_template = TOOL_TEMPLATE
    if name == "a.parquet" and not as_text:  # Parquet has no objects without fields
        row["tools"] = json.loads(
            json.dumps(TOOLS).replace('"properties": {}', '"properties": {"at": {"type": "string"}}')
        )
    (example,) = read_conversations([write_rows(tmp_path / name, [row])], tok, 1000).examples
    tools = json.loads(row["tools"]) if as_text else row["tools"]
    said = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    expected, _ = transformers_utils.render_jinja_template(
        conversations=[said], tools=tools, chat_template=TOOL_TEMPLATE, tone="!"
    )
    assert tok.decode(example.ids) == expected[0]
    assert learned_text(tok, example) == '{"name": "sky", "arguments": {"at": "noon"}}<|end|>'


def test_sharegpt_and_alpaca_keep_all_that_they_say(tokenizer: Tokenizer, tmp_path: Path) -> None:
    sharegpt = {
        "system": "is",
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": '{"name": "sky", "arguments": {}}'},
            {"from": "observation", "value": "b"},
            {"from": "gpt", "value": "c", "weight": 0},
        ],
    }
    alpaca = {"instruction": "a", "input": "b", "output": "c", "system": "is", "history": [["d", "e"]]}
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = TOOL_TEMPLATE
    (first,) = read_conversations([write_rows(tmp_path / "a.jsonl", [sharegpt])], tokenizer, 200).examples
    assert tokenizer.decode(first.ids) == (
        '<|system|>is<|end|><|user|>a<|end|><|assistant|>{"name": "sky", "arguments": {}}<|end|><|tool|>b<|end|>'
        "<|assistant|>c<|end|>"
    )
    assert learned_text(tokenizer, first) == '{"name": "sky", "arguments": {}}<|end|>'
    (second,) = read_conversations([write_rows(tmp_path / "b.jsonl", [alpaca])], tokenizer, 200).examples
    assert tokenizer.decode(second.ids) == (
        "<|system|>is<|end|><|user|>d<|end|><|assistant|>e<|end|><|user|>a\nb<|end|><|assistant|>c<|end|>"
    )
    assert learned_text(tokenizer, second) == "e<|end|>c<|end|>"
    (last,) = read_conversations([tmp_path / "b.jsonl"], tokenizer, 200, train_on="last").examples
    assert learned_text(tokenizer, last) == "c<|end|>"
    (whole,) = read_conversations([tmp_path / "b.jsonl"], tokenizer, 200, train_on="all").examples
    assert np.array_equal(whole.labels, whole.ids)


def test_templates_that_read_parts_get_parts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]}, TALK[1]]}
    path = write_rows(tmp_path / "a.jsonl", [row])
    (joined,) = read_conversations([path], tokenizer, 100).examples
    assert tokenizer.decode(joined.ids) == "<|user|>a\nb<|end|><|assistant|>up<|end|>"
    reader = copy.copy(tokenizer)
    reader.chat_template = TEMPLATE.replace(
        "{{ m.content }}",
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}({{ part.text }}){% endfor %}{% endif %}",
    )
    (parts,) = read_conversations([path], reader, 100).examples
    assert tokenizer.decode(parts.ids) == "<|user|>(a)(b)<|end|><|assistant|>up<|end|>"


def test_a_completion_is_learned_after_its_prompt_as_trl_does(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """TRL: the ids of prompt and completion, ended by one end-of-text id; those of the prompt are not learned."""
    bare = Tokenizer.from_file(_saved(tokenizer, tmp_path))
    bare.chat_template = None
    rows = [{"prompt": "what is", "completion": " up"}, {"prompt": "what", "completion": " is<|endoftext|>"}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.warns(UserWarning, match=r"looks like special tokens .*'<\|endoftext\|>' 1 times"):
        first, second = read_conversations([path], bare, 100).examples
    assert bare.decode(first.ids) == "what is up<|endoftext|>" and learned_text(bare, first) == " up<|endoftext|>"
    assert bare.decode(second.ids) == "what is<|endoftext|><|endoftext|>"
    assert (first.ids == bare.eos_id).sum() == (second.ids == bare.eos_id).sum() == 1
    first, second = read_conversations([path], bare, 100, parse_special=True).examples
    for example, row in zip((first, second), rows, strict=True):
        ended = (
            row["completion"] if row["completion"].endswith("<|endoftext|>") else row["completion"] + "<|endoftext|>"
        )
        together, prompt = (bare.encode(text, allowed_special="all") for text in (row["prompt"] + ended, row["prompt"]))
        assert example.ids.tolist() == together
        assert (example.labels >= 0).tolist() == [n >= len(prompt) for n in range(len(together))]
    everything = read_conversations([path], bare, 100, parse_special=True, train_on="all").examples
    assert all(np.array_equal(example.ids, example.labels) for example in everything)
    framed = bare.with_special_tokens(["<s>", "</s>"])
    ends = {"single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}
    file = json.loads(_saved(framed, tmp_path).read_text())
    file["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*ends["single"], {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": [framed.special_tokens[name]], "tokens": [name]} for name in ("<s>", "</s>")
        },
    }
    (tmp_path / "framed.json").write_text(json.dumps(file))
    framed = Tokenizer.from_file(tmp_path / "framed.json")
    (example, _) = read_conversations([path], framed, 100, parse_special=True).examples
    assert framed.decode(example.ids) == "<s>what is up</s>" and learned_text(framed, example) == " up</s>"


def _saved(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(folder / "tokenizer.json")
    return folder / "tokenizer.json"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.parquet"])
def test_text_that_holds_rendered_chats_is_parsed_or_warned_of(tokenizer: Tokenizer, tmp_path: Path, name: str) -> None:
    config = training.TrainConfig(**SETTINGS)
    texts = [SPELT * 6 + "<|endoftext|>", SPELT * 8]
    path = tmp_path / name
    if name == "a.txt":
        path.write_text("".join(texts))
    else:
        write_rows(path, [{"text": text} for text in texts])

    def tokens(out: str, **options: Any) -> list[int]:
        training.finetune(fresh(), tokenizer, path, config, tmp_path / out, progress=False, **options)
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
def test_plain_text_begins_as_the_tokenizers_file_says(
    tokenizer: Tokenizer, tmp_path: Path, name: str, parse_special: bool
) -> None:
    eos = tokenizer.eos_id
    framed = Tokenizer(tokenizer.with_bos_eos(eos - 1, eos).with_template(eos - 1, None))
    config = training.TrainConfig(**SETTINGS)
    texts = ["what is up " * 20, "and why is it so " * 20]
    if name == "a.txt":
        (tmp_path / name).write_text(texts[0])
        (tmp_path / "b.txt").write_text(texts[1])
    else:
        write_rows(tmp_path / name, [{"text": text} for text in texts])
    files = [*tmp_path.iterdir()]
    training.finetune(
        fresh(), framed, sorted(files), config, tmp_path / "out", parse_special=parse_special, progress=False
    )
    expected = [token for text in texts for token in [eos - 1, *tokenizer.encode(text), eos]]
    assert np.load(tmp_path / "out" / "tokens.npy").tolist() == expected
    if parse_special:  # what the text says itself is not said twice
        begin = framed.id_to_token(eos - 1)
        (tmp_path / "c.txt").write_text(f"{begin}{texts[0]}<|endoftext|>")
        training.finetune(
            fresh(), framed, tmp_path / "c.txt", config, tmp_path / "out2", parse_special=True, progress=False
        )
        assert np.load(tmp_path / "out2" / "tokens.npy").tolist() == [eos - 1, *tokenizer.encode(texts[0]), eos]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": TALK, "functions": [{"name": "f"}]}, "'functions' is .*; expected 'tools'"),
        ({"messages": TALK, "images": ["a.png"]}, r"'images' is \['a.png'\]; only text can be learned"),
        ({"prompt": "a", "completion": "b", "label": False}, "'label' is False; preferences cannot be learned"),
        ({"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1]}, "'chosen' is .*; preferences cannot be learned"),
        ({"messages": [TALK[0], {"role": "assistant", "function_call": {"name": "f"}}]}, "message 1: 'function_call'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, TALK[1]]}, "message 0: part 0 is .*'image'"),
        ({"messages": [TALK[0], TALK[1] | {"weight": 2}]}, "message 1: weight is 2; expected 0 or 1"),
        ({"messages": TALK, "tools": {"a": 1}}, "'tools' is .*; expected a list of schemas"),
        ({"messages": TALK, "tools": "[{"}, "'tools' is .*, not valid JSON"),
        ({"messages": TALK, "tools": ["\ud800"]}, r"lone surrogate \\ud800 in 'tools'"),
        ({"messages": TALK, "chat_template_kwargs": {"no": 1}}, "'no' is no option"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, "message 0: 'from' is 'robot'; expected one of"),
        ({"conversations": [{"value": "a"}]}, "message 0 is .*; expected an object with 'from' and 'value'"),
        ({"conversations": [{"from": "gpt", "value": None}]}, "message 0: 'value' is None; expected a text"),
        ({"conversations": [{"from": "function_call", "value": "f"}]}, "message 0: the call 'f' is not valid JSON"),
        ({"instruction": "a", "output": 3}, "3.*; expected a text|'output' is 3"),
        ({"instruction": "a", "output": "b", "history": "c"}, "'history' is 'c'; expected a list of pairs"),
        ({"prompt": "a", "completion": ["b"]}, "'prompt' is 'a'; expected a list of messages"),
        ({"prompt": "a", "completion": 3}, "'completion' is 3; expected a text"),
    ],
)
def test_rows_that_are_not_of_their_format_are_named_or_skipped(
    tokenizer: Tokenizer, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    good = next(kind for kind in SAME.values() if kind.keys() & row.keys())
    path = write_rows(tmp_path / "a.jsonl", [good, row, good])
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: .*({message})"):
        read_conversations([path], tokenizer, 100)
    with pytest.warns(UserWarning, match=rf"skipped 1 row .*a\.jsonl, line 2: .*({message})"):
        assert len(read_conversations([path], tokenizer, 100, on_error="skip").examples) == 2


@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.csv.gz", "a.xlsx", "a.jsonlines"])
def test_other_tables_are_refused_unless_they_are_to_be_text(tmp_path: Path, name: str) -> None:
    plain = [tmp_path / name for name in ("a.txt", "a.md", "README", "a.py", "a.csv.txt", "a.txt.gz")]
    assert set(find_formats(plain, DataConfig()).values()) == {"text"}
    path = tmp_path / name
    expected = r"rows of \.\w+ are not read; expected \.json, \.jsonl, \.ndjson or \.parquet, or a file of plain text"
    with pytest.raises(ValueError, match=expected) as caught:
        find_formats([plain[0], path], DataConfig())
    assert str(path) in str(caught.value)
    assert find_formats([path], DataConfig(format="text")) == {path: "text"}


def test_files_of_no_format_and_wrong_options_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = training.TrainConfig(**SETTINGS)
    rows = write_rows(tmp_path / "a.jsonl", [{"question": "what", "answer": "up"}])
    talks = write_rows(tmp_path / "b.jsonl", [SAME["messages"]] * 4)
    plain = tmp_path / "c.txt"
    plain.write_text("up is up " * 40)

    def refused(message: str, path: Path, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            training.finetune(fresh(), tokenizer, path, config, tmp_path / "run", progress=False, **options)

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


def test_reasoning_that_the_template_leaves_out_is_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [SAME["messages"], {"messages": [TALK[0], TALK[1] | {"reasoning_content": "since"}]}]
    with pytest.warns(UserWarning, match="omits the reasoning of 1 conversations"):
        read_conversations([write_rows(tmp_path / "a.jsonl", rows)], tokenizer, 100)


def test_the_first_example_is_shown(
    tokenizer: Tokenizer,
    talks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = training.TrainConfig(**SETTINGS | {"max_steps": 1})
    training.finetune(fresh(), tokenizer, talks, config, tmp_path / "run", show_example=True, progress=False)
    shown = capsys.readouterr().err
    assert (
        "18 tokens, 5 of them learned (in brackets)" in shown and "<|assistant|>⟦up<|end|>⟧<|user|>is<|end|>" in shown
    )
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    (tmp_path / "a.txt").write_text("what is up " * 50)
    training.finetune(fresh(), tokenizer, tmp_path / "a.txt", config, tmp_path / "b", show_example=True, progress=False)
    shown = capsys.readouterr().err
    assert "23 of them learned (coloured)" in shown and "\x1b[30;48;5;" in shown and "⟦" not in shown


def test_a_run_in_progress_is_refused_before_its_tokens_are_replaced(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("what is up " * 50)
    config = training.TrainConfig(**SETTINGS)
    with locked(tmp_path / "run"), pytest.raises(ValueError, match="another run is going on in this folder"):
        training.finetune(fresh(), tokenizer, tmp_path / "a.txt", config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "tokens.npy").exists()


def test_parquet_without_pyarrow_names_the_extra(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "a.parquet", [SAME["messages"]])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'bpe-llama\[parquet\]'"):
        read_conversations([path], tokenizer, 100)


def test_what_no_checkpoint_would_hold_is_not_trained(tokenizer: Tokenizer, talks: Path, tmp_path: Path) -> None:
    config = training.TrainConfig(**SETTINGS)

    def refused(model: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            training.finetune(model, tokenizer, talks, config, tmp_path / "out", progress=False)
        assert not [*(tmp_path / "out").glob("step-*")]

    model = lora.add(fresh(), rank=2)
    model.model.norm.weight.requires_grad_(True)
    refused(model, r"model\.norm\.weight: trained beside adapters.*modules_to_save")
    merged = lora.add(fresh(), rank=2)
    lora.merge(merged)
    refused(merged, "adapters are merged into the weights; unmerge them")
    classifier = LlamaForSequenceClassification(fresh().config)
    refused(classifier, "the model is a LlamaForSequenceClassification; expected a LlamaForCausalLM")
    saved = lora.add(fresh(), rank=2, modules_to_save=["norm"])
    training.finetune(saved, tokenizer, talks, config, tmp_path / "out", progress=False)
