"""Chat templates in the style of published models', rendered by us and by transformers: equal text, ids and masks."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import data
from bpe_llama import Tokenizer, chat
from bpe_llama._gguf.header import read_gguf_header
from bpe_llama.chat.templates import read_chat_templates, write_chat_templates
from tests.parity.chat.families import FAMILIES, get_weather, outcome

transformers = pytest.importorskip("transformers", reason="transformers is the reference")
utilities = pytest.importorskip("transformers.utils.chat_template_utils")

SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<|eot|>", "[INST]", "[/INST]", "<|channel|>"]

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 3}}}
TALKS: dict[str, list[dict[str, Any]]] = {
    "plain": [
        {"role": "system", "content": "Be brief. /no_think\n"},
        {"role": "user", "content": "  What is 2 < 3 & 'naïve'?\n"},
        {"role": "assistant", "content": "True."},
        {"role": "user", "content": "Why? 🤗"},
    ],
    "answered": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIt is so. \n"},
    ],
    "reasoned": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning": "since"},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "b", "thinking": "as\n", "tool_calls": None},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": '{"sun": true}'},
        {"role": "assistant", "content": "Sunny."},
    ],
    "called": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "tool_calls": [CALL, CALL]}],
    "parts": [
        {"role": "system", "content": [{"type": "text", "text": "See."}]},
        {
            "role": "user",
            "content": [{"type": "image", "url": "x"}, {"type": "text", "text": "What? "}, {"type": "image"}],
        },
    ],
}


TOOLS = [
    get_weather,
    {"type": "function", "function": {"name": "größe", "description": "<&>", "parameters": {"properties": {}}}},
]
DOCUMENTS = [{"title": "A", "text": "First & last."}, {"title": "B", "text": "Ünï", "n": 2}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    text = "system user assistant Be brief What is it, and why so much of it. Current date: naïve weather Zürich"
    made = Tokenizer.train_from_iterator([text] * 3, vocab_size=330, special_tokens=SPECIAL, progress=False)
    made.save(folder / "tokenizer.json")
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("talk", TALKS)
def test_text_and_ids_equal_transformers(family: str, talk: str, ours: Tokenizer, theirs: Any) -> None:
    """Over all options of a rendering; where transformers refuses a conversation, so do we."""
    messages, template = TALKS[talk], FAMILIES[family]
    for options in (
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": True, "tools": TOOLS},
        {"add_generation_prompt": False, "tools": [], "documents": DOCUMENTS},
        {"continue_final_message": True},
        {"continue_final_message": "reasoning"},
    ):
        given: dict[str, Any] = {"chat_template": template, **options}
        expected = outcome(lambda given=given: theirs.apply_chat_template(messages, tokenize=False, **given))
        got = outcome(lambda given=given: ours.apply_chat_template(messages, tokenize=False, **given))
        assert got == expected, given
        if expected != "refused":
            ids = theirs.apply_chat_template(messages, return_dict=False, **given)
            assert ours.apply_chat_template(messages, **given) == ids, given


@pytest.mark.parametrize(
    "stated",
    [
        {"image_token": "<|eot|>"},
        {"extra_special_tokens": {"image_token": "<|eot|>", "note": "<new>"}},
        {"model_specific_special_tokens": {"image_token": "<|eot|>"}},
        {"extra_special_tokens": ["<|eot|>"]},
    ],
)
def test_a_template_reads_the_tokens_of_all_roles(stated: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")) | stated
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    ours, theirs = Tokenizer.from_file(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    template = "{{ bos_token }}{{ image_token }}{{ note }}{{ messages[0].content }}"
    talk = [{"role": "user", "content": "hi"}]
    for given in ({}, {"image_token": "own"}):
        options = {"chat_template": template, **given}
        text = theirs.apply_chat_template(talk, tokenize=False, **options)
        assert ours.apply_chat_template(talk, tokenize=False, **options) == text
        ids = theirs.apply_chat_template(talk, return_dict=False, **options)
        assert ours.apply_chat_template(talk, **options) == ids


def test_a_list_of_conversations_has_a_list_of_results(ours: Tokenizer, theirs: Any) -> None:
    talks = [TALKS["plain"], TALKS["answered"]]
    marked = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    options: dict[str, Any] = {"chat_template": FAMILIES["gemma 3"], "add_generation_prompt": True}
    for given in ({"tokenize": False}, {"return_dict": False}):
        assert ours.apply_chat_template(talks, **given, **options) == theirs.apply_chat_template(
            talks, **given, **options
        )
    options = {"chat_template": marked + "{{ tools }}{{ documents }}", "return_assistant_tokens_mask": True}
    both = ours.apply_chat_template(talks, tools=iter(TOOLS), documents=iter(DOCUMENTS), **options)
    alone = [ours.apply_chat_template(talk, tools=TOOLS, documents=DOCUMENTS, **options) for talk in talks]
    assert both == {name: [row[name] for row in alone] for name in alone[0]}


def test_these_conversations_are_rendered_by_most_families(ours: Tokenizer) -> None:
    """So that the comparison above is not one of refusals."""
    for family, template in FAMILIES.items():
        rendered = [
            outcome(lambda m=m, t=template: ours.apply_chat_template(m, tokenize=False, chat_template=t)) != "refused"
            for m in TALKS.values()
        ]
        assert sum(rendered) >= 3, family


def test_a_published_template(real: Callable[..., Any]) -> None:
    template = read_gguf_header(real(data.vocabulary, "smollm2")).metadata["tokenizer.chat_template"]
    for talk in ("plain", "answered", "reasoned"):
        for prompted in (True, False):
            expected, _ = utilities.render_jinja_template(
                conversations=[TALKS[talk]], chat_template=template, add_generation_prompt=prompted
            )
            assert [chat.render(template, TALKS[talk], add_generation_prompt=prompted)] == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [("enable_thinking", False), ("enable_thinking", True), ("custom_tools", [{"a": 1}]), ("date_string", "now")],
)
def test_variables_reach_the_template(name: str, value: Any, ours: Tokenizer, theirs: Any) -> None:
    read = 0
    for template in FAMILIES.values():
        given = {"tokenize": False, "chat_template": template, "add_generation_prompt": True, name: value}
        if name not in template:
            with pytest.raises(ValueError, match=f"'{name}' is no option .* no variable"):
                ours.apply_chat_template(TALKS["plain"], **given)
            continue
        read += 1
        assert ours.apply_chat_template(TALKS["plain"], **given) == theirs.apply_chat_template(TALKS["plain"], **given)
    assert read


@pytest.mark.parametrize(
    "last",
    [
        "text",
        "  text \n",
        "",
        " ",
        "text text",
        [{"type": "text", "text": "a "}, {"type": "image"}],
        [],
        [{"type": "image"}],
    ],
)
@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<{{ m.content if m.content is string else m.content[0].text }}>{% endfor %}",
        "{% for m in messages %}<{{ m.content | trim }} >{% endfor %}",
        "{% for m in messages %}<{{ m.content | upper }}>{% endfor %}",
        "{% for m in messages %}{{ m.content | tojson }}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.role }}{% endfor %}",
    ],
)
def test_continuing_a_message_equals_transformers(last: Any, template: str, ours: Tokenizer, theirs: Any) -> None:
    messages = [{"role": "user", "content": "text"}, {"role": "assistant", "content": last}]
    given = {"tokenize": False, "chat_template": template, "continue_final_message": True}
    expected = outcome(lambda: theirs.apply_chat_template(messages, **given))
    assert outcome(lambda: ours.apply_chat_template(messages, **given)) == expected


GENERATION = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"""


@pytest.mark.parametrize("template", [GENERATION, FAMILIES["smollm 3"], GENERATION.replace("{{ '<|im_end|>' }}", "")])
def test_assistant_masks_equal_transformers(template: str, ours: Tokenizer, theirs: Any) -> None:
    for talk in ("plain", "answered", "reasoned"):
        given = {"chat_template": template, "return_assistant_tokens_mask": True, "add_generation_prompt": False}
        expected = theirs.apply_chat_template(TALKS[talk], **given)
        got = ours.apply_chat_template(TALKS[talk], **given)
        assert got == {key: expected[key] for key in ("input_ids", "attention_mask", "assistant_masks")}
        assert 0 < sum(got["assistant_masks"]) < len(got["input_ids"])


def test_fine_tuning_learns_generation_blocks(ours: Tokenizer) -> None:
    talk = [*TALKS["plain"], {"role": "assistant", "content": "Because <|im_end|> é🤗."}]
    ids, learned = chat.encode_conversation(ours, talk, chat_template=GENERATION)
    said = ours.decode([token for token, mine in zip(ids, learned, strict=True) if mine])
    assert said == "True.<|im_end|>Because <|im_end|> é🤗.<|im_end|>"
    assert ours.decode(ids) == ours.apply_chat_template(talk, False, tokenize=False, chat_template=GENERATION)
    masked = ours.apply_chat_template(talk, False, chat_template=GENERATION, return_assistant_tokens_mask=True)
    assert (masked["input_ids"], masked["assistant_masks"]) == (ids, [int(told) for told in learned])
    assert ids.count(ours.special_tokens["<|im_end|>"]) == len(talk)  # not the one within the message


@pytest.mark.parametrize("talk", ["plain", "answered", "reasoned", "tools", "called"])
@pytest.mark.parametrize("template", [GENERATION.replace("m.content", "m.content | default('')"), FAMILIES["smollm 3"]])
def test_fine_tuning_masks_equal_transformers(talk: str, template: str, ours: Tokenizer, theirs: Any) -> None:
    given = {"chat_template": template, "return_assistant_tokens_mask": True, "return_dict": True}
    expected = theirs.apply_chat_template(TALKS[talk], **given)
    ids, learned = chat.encode_conversation(ours, TALKS[talk], chat_template=template)
    assert ids == expected["input_ids"] and [int(told) for told in learned] == expected["assistant_masks"]


@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if name != "oddities"]
)  # which writes three letters of an answer
@pytest.mark.parametrize("talk", ["plain", "answered", "reasoned", "tools", "called"])
def test_learned_answers_occur_in_the_text_of_transformers(
    family: str, talk: str, ours: Tokenizer, theirs: Any
) -> None:
    given = {"chat_template": FAMILIES[family], "add_generation_prompt": False}
    try:
        ids, learned = chat.encode_conversation(ours, TALKS[talk], chat_template=FAMILIES[family])
    except ValueError as error:
        named = "the chat template (failed|does not write the answer right after its generation prompt)|special token"
        assert re.search(named, str(error))
        return
    whole = theirs.apply_chat_template(TALKS[talk], tokenize=False, **given)
    assert ours.decode(ids) == whole
    runs = itertools.groupby(zip(ids, learned, strict=True), lambda pair: pair[1])
    said = [ours.decode([token for token, _ in run]) for told, run in runs if told]
    for message in TALKS[talk]:
        content = (message.get("content") or "").split("</think>")[-1].strip()
        assert message["role"] != "assistant" or any(content in text for text in said) or not content
        assert message["role"] == "assistant" or len(content) < 2 or all(content not in text for text in said)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_of_every_family_are_found(family: str, ours: Tokenizer) -> None:
    for talk in ("plain", "reasoned"):
        _, learned = chat.encode_conversation(ours, TALKS[talk], chat_template=FAMILIES[family])
        assert any(learned) and not learned[0]


NEEDS_A_USER = "{% if 'user' not in messages | map(attribute='role') %}{{ raise_exception('no user') }}{% endif %}"


@pytest.mark.parametrize("system", [[], TALKS["plain"][:1]], ids=["", "system"])
@pytest.mark.parametrize(
    "template",
    [FAMILIES[name] for name in ("chatml", "llama 3 with tools", "qwen 3")] + [NEEDS_A_USER + FAMILIES["chatml"]],
)
def test_an_answer_may_begin_the_conversation(template: str, system: Any, ours: Tokenizer, theirs: Any) -> None:
    talk = [*system, {"role": "assistant", "content": "Hello!"}, *TALKS["plain"][1:3]]
    ids, learned = chat.encode_conversation(ours, talk, chat_template=template)
    given = {"chat_template": template, "add_generation_prompt": False, "tokenize": False}
    assert ours.decode(ids) == theirs.apply_chat_template(talk, **given)
    runs = itertools.groupby(zip(ids, learned, strict=True), lambda pair: pair[1])
    first, second = (ours.decode([token for token, _ in run]) for told, run in runs if told)
    assert first.startswith("Hello!<") and "True.<" in second and "assistant" not in first + second


def test_a_generation_block_of_unknown_place_is_refused(ours: Tokenizer) -> None:
    template = (
        "{% macro say(m) %}[{% generation %}{{ m.content }}{% endgeneration %}]{% endmacro %}{{ say(messages[0]) }}"
    )
    assert ours.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False, chat_template=template) == "[q]"
    with pytest.raises(ValueError, match="within a macro"):
        ours.apply_chat_template(
            [{"role": "user", "content": "q"}], chat_template=template, return_assistant_tokens_mask=True
        )


# -- where templates come from -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [None, "OLD", [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "U"}], {"rag": "R"}]
)
@pytest.mark.parametrize("jinja", [None, "NEW\r\n{# é #}\n"])
@pytest.mark.parametrize("named", [{}, {"tool_use": "T"}, {"rag": "G", "tool_use": "T"}])
def test_files_are_read_as_in_transformers(
    config: Any, jinja: str | None, named: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(settings | ({"chat_template": config} if config else {}))
    )
    if jinja is not None:
        (tmp_path / "chat_template.jinja").write_bytes(jinja.encode())
    if named:
        (tmp_path / "additional_chat_templates").mkdir()
    for name, template in named.items():
        (tmp_path / "additional_chat_templates" / f"{name}.jinja").write_text(template)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = Tokenizer.from_file(tmp_path)
    assert ours.chat_template == theirs.chat_template
    messages = [{"role": "user", "content": "q"}]
    for options in ({}, {"tools": []}, {"tools": TOOLS}, {"chat_template": "rag"}, {"chat_template": "{{ messages }}"}):
        expected = outcome(lambda options=options: theirs.apply_chat_template(messages, tokenize=False, **options))
        assert (
            outcome(lambda options=options: ours.apply_chat_template(messages, tokenize=False, **options)) == expected
        )


@pytest.mark.parametrize("template", ["one é\n", {"default": "D", "tool_use": "U"}, {"rag": "R"}, None])
def test_transformers_reads_written_templates(template: Any, folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    write_chat_templates(tmp_path, {"default": "stale", "old": "stale"})
    write_chat_templates(tmp_path, template)
    assert transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template == template
    assert read_chat_templates(tmp_path, {}) == template
    assert not list(tmp_path.rglob(".*"))


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Picture:
    url: str
    size: tuple[int, int]


@pytest.mark.parametrize(
    "content",
    [
        Picture("u", (1, 2)),
        np.float32(1.5),
        np.bool_(False),
        np.zeros(2),
        {1, 2},
        object(),
        (1, [2]),
        {"a": None},
        Colour.RED,
    ],
)
def test_other_objects_become_plain(content: Any, ours: Tokenizer, theirs: Any) -> None:
    template = "{{ messages[0].content }}{{ messages[0].content is mapping }}"
    given = {"tokenize": False, "chat_template": template}
    messages = [{"role": "user", "content": content}]
    assert ours.apply_chat_template(messages, **given) == theirs.apply_chat_template(messages, **given)
