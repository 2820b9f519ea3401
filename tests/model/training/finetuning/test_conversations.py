"""Conversations and completions as examples: formats, chat templates, learned tokens, refused rows."""

from __future__ import annotations

import copy
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest

from bpe_llama import Tokenizer
from bpe_llama._progress import Progress
from bpe_llama.model.training import DataConfig
from bpe_llama.model.training.finetuning.conversations import find_formats, read_conversations
from tests.model.training.helpers import SAME, SHAREGPT, SPELT, TALK, TEMPLATE, learned_text, write_rows, write_talks


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


def test_reading_reports_its_progress(tokenizer: Tokenizer, talks: Path) -> None:
    seen: list[Progress] = []
    talks.write_text(talks.read_text() * 23)  # 9 rows each
    read_conversations([talks], tokenizer, 100, progress=seen.append)
    assert seen == [("read", 100, None), ("read", 200, None)]


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


def test_a_number_that_python_does_not_read_is_named(tokenizer: Tokenizer, talks: Path) -> None:
    talks.write_text(f'{{"messages": {"9" * 5000}}}\n')
    with pytest.raises(ValueError, match=r"talks\.jsonl, line 1: not valid JSON"):
        read_conversations([talks], tokenizer, 100)


def test_a_deeply_nested_line_is_refused(tokenizer: Tokenizer, talks: Path) -> None:
    talks.write_text('{"messages": ' + "[" * 200_000 + "\n")
    with pytest.raises(ValueError, match=r"talks\.jsonl, line 1: not valid JSON"):
        read_conversations([talks], tokenizer, 100)


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
def test_invalid_lines_are_refused_by_place_or_skipped(
    tokenizer: Tokenizer, tmp_path: Path, line: str, message: str
) -> None:
    talk = [("user", "is"), ("assistant", "up")]
    path = write_talks(tmp_path / "talks.jsonl", [talk])
    with path.open("ab") as file:
        file.write(line.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read_conversations([path], tokenizer, 24)
    good = write_talks(tmp_path / "good.jsonl", [talk] * 2)
    path.write_bytes(path.read_bytes() + b"\n" + write_talks(tmp_path / "more.jsonl", [talk]).read_bytes())
    with pytest.warns(UserWarning, match=f"skipped 1 row without text; the first: .*{message}"):
        found = read_conversations([path], tokenizer, 24, DataConfig(on_error="skip"))
    expected = read_conversations([good], tokenizer, 24)
    assert [example.ids.tolist() for example in found.examples] == [
        example.ids.tolist() for example in expected.examples
    ]


def test_a_byte_order_mark_is_ignored(tokenizer: Tokenizer, talks: Path) -> None:
    plain = read_conversations([talks], tokenizer, 24)
    talks.write_bytes(b"\xef\xbb\xbf" + talks.read_bytes().replace(b"what", rb"what \ud83d\ude00 \\ud83d"))
    assert find_formats([talks], DataConfig()) == {talks: "messages"}
    assert len(read_conversations([talks], tokenizer, 24).examples) == len(plain.examples)


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
        [path], tokenizer, 100, DataConfig(kind.split(" ")[0] if kind != "text parts" else "messages")
    )
    assert [example.ids.tolist() for example in forced.examples] == [example.ids.tolist() for example in found.examples]


def test_a_json_file_may_hold_json_lines_or_one_row(tokenizer: Tokenizer, tmp_path: Path) -> None:
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
def test_tools_and_calls_are_rendered_as_by_transformers(
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


JOINED = "{% for m in messages %}{% for c in m.tool_calls %}{{ '=' + c.function.arguments }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "given", "learned"),
    [
        (TOOL_TEMPLATE, '{"at":"noon"}', '{"name": "sky", "arguments": {"at": "noon"}}<|end|>'),
        (TOOL_TEMPLATE, "", '{"name": "sky", "arguments": {}}<|end|>'),
        (TOOL_TEMPLATE, "noon", None),
        (JOINED, '{"at":"noon"}', '={"at":"noon"}'),  # as DeepSeek's templates
    ],
)
def test_the_arguments_of_openais_calls_are_the_objects_that_the_server_renders(
    tokenizer: Tokenizer, tmp_path: Path, template: str, given: str, learned: str | None
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "sky", "arguments": given}}
    row = {"messages": [TALK[0], {"role": "assistant", "content": None, "tool_calls": [call]}]}
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = template
    path = write_rows(tmp_path / "a.jsonl", [row])
    if learned is None:
        with pytest.raises(ValueError, match=r"line 1: message 1: .* 'noon'; expected a JSON object"):
            read_conversations([path], tokenizer, 200)
    else:
        (example,) = read_conversations([path], tokenizer, 200).examples
        assert learned_text(tokenizer, example) == learned


def test_all_fields_of_sharegpt_and_alpaca_are_used(tokenizer: Tokenizer, tmp_path: Path) -> None:
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
    (last,) = read_conversations([tmp_path / "b.jsonl"], tokenizer, 200, DataConfig(train_on="last")).examples
    assert learned_text(tokenizer, last) == "c<|end|>"
    (whole,) = read_conversations([tmp_path / "b.jsonl"], tokenizer, 200, DataConfig(train_on="all")).examples
    assert np.array_equal(whole.labels, whole.ids)
    split = {"prompt": [*TALK, TALK[0]], "completion": [{"role": "assistant", "content": "is"}]}
    for train_on, text in {
        "assistant": "is<|end|>",
        "all": f"{SPELT}<|user|>what<|end|><|assistant|>is<|end|>",
    }.items():
        path = write_rows(tmp_path / "c.jsonl", [split])
        (example,) = read_conversations([path], tokenizer, 200, DataConfig(train_on=train_on)).examples
        assert learned_text(tokenizer, example) == text


def test_templates_that_support_content_parts_get_parts(tokenizer: Tokenizer, tmp_path: Path) -> None:
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
    first, second = read_conversations([path], bare, 100, DataConfig(parse_special=True)).examples
    for example, row in zip((first, second), rows, strict=True):
        ended = (
            row["completion"] if row["completion"].endswith("<|endoftext|>") else row["completion"] + "<|endoftext|>"
        )
        together, prompt = (bare.encode(text, allowed_special="all") for text in (row["prompt"] + ended, row["prompt"]))
        assert example.ids.tolist() == together
        assert (example.labels >= 0).tolist() == [n >= len(prompt) for n in range(len(together))]
    everything = read_conversations([path], bare, 100, DataConfig(parse_special=True, train_on="all")).examples
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
    (example, _) = read_conversations([path], framed, 100, DataConfig(parse_special=True)).examples
    assert framed.decode(example.ids) == "<s>what is up</s>" and learned_text(framed, example) == " up</s>"


def _saved(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(folder / "tokenizer.json")
    return folder / "tokenizer.json"


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
        ({"messages": TALK, "chat_template_kwargs": {"bos_token": "<|end|>"}}, "sets 'bos_token'; a row cannot change"),
        *(
            ({"messages": TALK, "chat_template_kwargs": {name: value}}, f"sets '{name}'; a row cannot change")
            for name, value in {"messages": [], "tokenizer": 1, "train_on": "all", "chat_template": "x"}.items()
        ),
        ({"messages": TALK, "chat_template_kwargs": {"templates": 1}}, "sets 'templates'; a row cannot change"),
        ({"messages": TALK, "chat_template_kwargs": {"named_tokens": 1}}, "sets 'named_tokens'; a row cannot change"),
        ({"messages": TALK, "chat_template_kwargs": {"documents": 1}}, "documents is 1; expected a list of mappings"),
        ({"messages": TALK, "chat_template_kwargs": {"add_generation_prompt": False}}, "sets 'add_generation_prompt'"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, "message 0: 'from' is 'robot'; expected one of"),
        ({"conversations": [{"value": "a"}]}, "message 0 is .*; expected an object with 'from' and 'value'"),
        ({"conversations": [{"from": "gpt", "value": None}]}, "message 0: 'value' is None; expected a text"),
        ({"conversations": [{"from": "function_call", "value": "f"}]}, "message 0: the call 'f' is not valid JSON"),
        ({"instruction": "a", "output": 3}, "3.*; expected a text|'output' is 3"),
        ({"instruction": "a", "output": "b", "history": "c"}, "'history' is 'c'; expected a list of pairs"),
        ({"instruction": "a", "output": "b", "history": [["c", [None]]]}, "'history' is .*; expected a list of pairs"),
        (
            {"prompt": [None], "completion": [{"role": "assistant", "content": "b"}]},
            "message 0 of 'prompt' is None; expected an object",
        ),
        ({"prompt": "a", "completion": ["b"]}, "'prompt' is 'a'; expected a list of messages"),
        ({"prompt": "a", "completion": 3}, "'completion' is 3; expected a text"),
    ],
)
def test_rows_of_another_format_are_refused_by_place_or_skipped(
    tokenizer: Tokenizer, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    good = next(kind for kind in SAME.values() if kind.keys() & row.keys())
    path = write_rows(tmp_path / "a.jsonl", [good, row, good])
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: .*({message})"):
        read_conversations([path], tokenizer, 100)
    with pytest.warns(UserWarning, match=rf"skipped 1 row .*a\.jsonl, line 2: .*({message})"):
        assert len(read_conversations([path], tokenizer, 100, DataConfig(on_error="skip")).examples) == 2


@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.csv.gz", "a.xlsx", "a.jsonlines"])
def test_other_tables_are_refused_unless_the_format_is_text(tmp_path: Path, name: str) -> None:
    plain = [tmp_path / name for name in ("a.txt", "a.md", "README", "a.py", "a.csv.txt", "a.txt.gz")]
    assert set(find_formats(plain, DataConfig()).values()) == {"text"}
    path = tmp_path / name
    expected = r"rows of \.\w+ are not read; expected \.json, \.jsonl, \.ndjson or \.parquet, or a file of plain text"
    with pytest.raises(ValueError, match=expected) as caught:
        find_formats([plain[0], path], DataConfig())
    assert str(path) in str(caught.value)
    assert find_formats([path], DataConfig(format="text")) == {path: "text"}


def test_reasoning_that_the_template_omits_is_a_warning(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [SAME["messages"], {"messages": [TALK[0], TALK[1] | {"reasoning_content": "since"}]}]
    with pytest.warns(UserWarning, match="omits the reasoning of 1 conversations"):
        read_conversations([write_rows(tmp_path / "a.jsonl", rows)], tokenizer, 100)


@pytest.mark.parametrize("template", [TEMPLATE, "{# developer #}" + TEMPLATE])
def test_a_developer_is_the_system_unless_the_template_names_it(
    tokenizer: Tokenizer, tmp_path: Path, template: str
) -> None:
    tokenizer.chat_template = template
    path = write_rows(tmp_path / "a.jsonl", [{"messages": [{"role": "developer", "content": "is"}, *TALK]}])
    (example,) = read_conversations([path], tokenizer, 100).examples
    role = "system" if template == TEMPLATE else "developer"
    talk = [{"role": role, "content": "is"}, *TALK]
    assert example.ids.tolist() == tokenizer.apply_chat_template(talk, add_generation_prompt=False)


def test_parquet_without_pyarrow_names_the_extra(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "a.parquet", [SAME["messages"]])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'bpe_llama\[parquet\]'"):
        read_conversations([path], tokenizer, 100)
