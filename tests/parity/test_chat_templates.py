# ruff: noqa: E501, UP007, UP037, UP045 - templates and old type hints stand as people write them
"""Chat templates in the style of published models', rendered by us and by transformers: equal text, ids and masks."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import json
import random
import re
import types as python_types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Optional, Union

import numpy as np
import pytest

from bench import data
from bpe_llama import Tokenizer, chat
from bpe_llama._gguf.header import read_gguf_header
from bpe_llama.chat.templates import read_chat_templates, write_chat_templates
from bpe_llama.chat.tool_schema import function_schema, parse_docstring, type_schema

transformers = pytest.importorskip("transformers", reason="transformers is the reference")
utilities = pytest.importorskip("transformers.utils.chat_template_utils")

SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<|eot|>", "[INST]", "[/INST]", "<|channel|>"]

FAMILIES = {
    "chatml": """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}""",
    "llama 3 with tools": """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "system|" + date_string + "|" + system_message + "<|eot|>" }}
{%- if tools is not none %}{%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\n\n" }}{%- endfor %}{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls|length != 1 %}{{- raise_exception("one call at a time") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}<|eot|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
    {%- else %}{{- message['role'] + '|\n\n' + message['content']|default('')|trim + '<|eot|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant|\n\n' }}{%- endif %}""",
    "mistral": """{%- set loop_messages = messages if messages[0]["role"] != "system" else messages[1:] %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages if message.role != "tool" and message.get("tool_calls") is not defined %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}{%- set ns.odd = true %}{%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}{%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}{{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
        {%- endif %}
        {%- if loop.last and messages[0].role == "system" %}{{- "[INST]" + messages[0].content + "\n\n" }}
        {%- else %}{{- "[INST]" }}{%- endif %}
        {{- (message["content"] or "") ~ "[/INST]" }}
    {%- elif message.get("tool_calls") %}{{- "[TOOL_CALLS]" ~ message.tool_calls|map(attribute="function.name")|join(",") }}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"]|trim + eos_token }}
    {%- else %}{{- message | string }}{%- endif %}
{%- endfor %}""",
    "qwen 3": """{%- if tools %}{{- '<|im_start|>system\n' }}
    {%- for tool in tools %}{{- "\n" }}{{- tool | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=true) }}{%- endfor %}
    {{- "<|im_end|>\n" }}{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and
        not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}{%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}{{- content }}{%- endif %}
        {%- if message.tool_calls %}{%- for tool_call in message.tool_calls %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\n<tool_call>\n{"name": "' ~ tool_call.name ~ '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments|tojson }}{%- endif %}
            {{- '}\n</tool_call>' }}
        {%- endfor %}{%- endif %}
        {{- '<|im_end|>\n' }}
    {%- else %}{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}""",
    "deepseek": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_first=false, system_prompt='', is_first_sp=true) %}
{%- for message in messages %}{%- if message['role'] == 'system' %}
    {%- if ns.is_first_sp %}{%- set ns.system_prompt = ns.system_prompt + message['content'] %}{%- set ns.is_first_sp = false %}
    {%- else %}{%- set ns.system_prompt = ns.system_prompt + '\n\n' + message['content'] %}{%- endif %}
{%- endif %}{%- endfor %}
{{- bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{'<User>' + message['content']}}{%- endif %}
    {%- if message['role'] == 'assistant' and message['content'] is not none and message['content'] is defined %}
        {%- set content = message['content'] %}
        {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
        {{- '<Assistant>' + content + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{'<Assistant><think>\n'}}{%- endif %}""",
    "gemma 3": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}{%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}{%- set prefix = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}""",
    "phi": """{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] %}
{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' }}
{% else %}{{ '<|' + message['role'] + '|>' + (message['content'] | string) + '<|end|>' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}""",
    "command-r": """{{ bos_token }}
{%- macro document_turn(documents) -%}
{# format of all documents #}
<results>
{%- for doc in documents %}

    {{- '\nDocument: ' ~ loop.index0 ~ '\n' }}
    {%- for key, value in doc.items() %}{{ key }}: {{ value }}
{% endfor %}
{%- endfor %}</results>
{%- endmacro %}
{%- macro kind(t) -%}
{%- if t in ['a', 'b'] -%}{{ {'a': 1, 'b': 2}[t] }}{%- elif t -%}{{ kind(t[1:]) }}{%- endif -%}
{%- endmacro %}
{%- for message in messages %}
    {%- if loop.last and documents %}{{ document_turn(documents) }}{%- endif %}
    {{- message.role | upper }} ({{ kind('zyb') }}): {{ message.content | replace('\n', ' ') | truncate(40) }}
{% endfor -%}
{%- macro wrap(a) %}[{{ caller(a) }}{{ varargs }}{{ kwargs }}]{% endmacro %}{% call(x) wrap(1, 2, k=3) %}{{ x }}{% endcall %}
{%- filter upper %}{% block tail %}the end {{ documents | default([], true) | length }}{% endblock %}{% endfilter -%}""",
    "smollm 3": """{%- if enable_thinking is not defined %}{%- set enable_thinking = true %}{%- endif %}
{%- set reasoning_mode = "/think" if enable_thinking else "/no_think" %}
{{- "<|im_start|>system\n" }}{{- "Today Date: " ~ strftime_now("%d %B %Y") ~ "\n" }}
{%- set custom = messages[0].content.replace("/no_think", "").rstrip() if messages[0].role == "system" else "" %}
{{- "Reasoning Mode: " + reasoning_mode + "\n\n" }}
{%- if xml_tools %}{% set ns = namespace(s="t:\n") %}
    {%- for tool in xml_tools %}{% set ns.s = ns.s ~ (tool | string) ~ "\n" %}{% endfor %}{{- ns.s }}
{%- endif %}
{{- custom }}{{- "<|im_end|>\n" }}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else "" %}
    {%- if message.role == "user" %}{{- "<|im_start|>user\n" + content + "<|im_end|>\n" }}
    {%- elif message.role == "assistant" %}
        {%- generation %}{{- "<|im_start|>assistant\n" + content.lstrip("\n") + "<|im_end|>\n" }}{%- endgeneration %}
    {%- elif message.role == "tool" %}{{- message.content }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\n" }}{%- endif %}""",
    "gpt-oss": """{%- macro render_type(spec, required=false) -%}
    {%- if spec.type == "array" -%}{{- render_type(spec['items']) + "[]" if spec['items'] else "any[]" }}
    {%- elif spec.type is defined and spec.type is iterable and spec.type is not string and spec.type[0] is defined -%}
        {{- spec.type | join(" | ") }}
    {%- elif spec.enum -%}{{ '"' + spec.enum|join('" | "') + '"' }}
    {%- elif spec.oneOf or spec.anyOf -%}
        {%- for variant in spec.oneOf or spec.anyOf -%}{{- render_type(variant) }}{{ " | " if not loop.last }}{%- endfor -%}
    {%- else -%}{{ spec.type or "any" }}{%- endif -%}{{ " | null" if spec.nullable }}
{%- endmacro %}
{%- if tools %}namespace functions {
{%- for tool in tools %}{% set tool = tool.function %}
// {{ tool.description }}
type {{ tool.name }} = (_: {
{%- for name, spec in tool.parameters.properties.items() %}
// {{ spec.description }}
{{ name }}{{ "?" if name not in (tool.parameters.required or []) }}: {{ render_type(spec) }},
{%- endfor %} }) => any;
{%- endfor %} }{% endif %}
{{- "Current date: " + strftime_now("%Y-%m-%d") }}
{%- if reasoning_effort is not defined %}{%- set reasoning_effort = "medium" %}{%- endif %}
{{- "Reasoning: " + reasoning_effort }}
{%- set last_tool_call = namespace(name=none) %}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if "thinking" in message %}{{- "<|channel|>analysis" + message.thinking }}{%- endif %}
        {%- if "tool_calls" in message %}
            {%- set future = namespace(found=false) %}
            {%- for later in messages[loop.index:] %}
                {%- if later.role == 'assistant' and "tool_calls" not in later %}
                    {%- set future.found = true %}{% break %}{%- endif %}
            {%- endfor %}
            {%- set last_tool_call.name = message.tool_calls[0].function.name %}
            {{- last_tool_call.name ~ future.found ~ message.tool_calls[0].function.arguments|tojson }}
        {%- else %}{{- "<|channel|>final" + (message.content or "") }}{%- endif %}
    {%- elif message.role == 'tool' -%}
        {%- if last_tool_call.name is none %}{{- raise_exception("a tool answers that nobody called") }}{%- endif %}
        {{- "functions." + last_tool_call.name }}{{- message.content|tojson }}
    {%- else %}{{- message.role ~ (message.content if message.content is string else message.content|tojson) }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant{%- endif -%}""",
    "oddities": """{%- for m in messages if m.role != 'system' -%}
    {%- if loop.index > 6 %}{% break %}{% endif -%}{%- if m.role == 'tool' %}{% continue %}{% endif -%}
    {{ loop.cycle('a', 'b') }}{{ loop.revindex }}{{ loop.length }}{{ loop.changed(m.role) }}{{ loop.previtem.role if not loop.first }}
    {{- m.keys() | list | sort | join(';') }}{{ m | dictsort | length }}{{ 1 < loop.index <= 3 }}{{ 'x' 'y' ~ 3 ~ none ~ true }}
    {{- m.content[0:3] if m.content is string }}{{ '%s-%5.1f' % (m.role, 2.5) }}{{ '{:>6}|{!r}'.format(m.role, m.role) }}
{% else %}nobody{% endfor %}
{%- set x %}block {{ messages | length }}{% endset %}{{ x | upper | center(20) | wordwrap(5) }}{{ [1, 2.0, true, none] }}
{{- {'k': (1,), 'l': [messages[0].role]} }}{{ dict(a=1, b=2).items() | list }}{{ range(3) | sum }}{{ 7 // 2 ** 2 % 5 - -1 }}
{{- ['b', 'A'] | sort }}{{ [1, 1, 2] | unique | list }}{{ 'abc' | list | reverse | join }}{{ [3, 1] | max }}{{ 3.7 | round | int }}
{{- [[1, 2], [3]] | sum(start=[]) }}{{ 'a,b'.split(',') | batch(3, '-') | list }}{{ '<b>&</b>' | striptags }}{{ '<' | e }}
{{- messages | groupby('role') | map(attribute='grouper') | list }}{{ '<' | tojson }}{{ [1, [2]] | tojson(indent=2) }}
{{- messages | map(attribute='role') | unique | join('/') }}{{ 'one two' | title | wordcount }}{{ 1000000 | filesizeformat }}
{{- 'é' | tojson(ensure_ascii=true) }}{{ (nothing.at_all is defined) if nothing is defined }}{{ 'text\nmore' | indent(3, true) }}
{{- pad_token }}{{ unk_token }}{{ sep_token is defined }}{{ cls_token }}{{ tools is none }}{{ documents is none }}{{ caller is defined }}
""",
}
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


def get_weather(
    city: str, days: int = 1, unit: Literal["c", "f"] = "c", tags: Optional[list[str]] = None
) -> dict[str, Any]:
    """
    Tell the weather of a city.

    Args:
        city: The city, as in
            "Zürich".
        days: How many days (choices: [1, 3])
        unit: Celsius or Fahrenheit
        tags: Any: or none

    Returns:
        What is expected, a day a key
    """
    return {}


TOOLS = [
    get_weather,
    {"type": "function", "function": {"name": "größe", "description": "<&>", "parameters": {"properties": {}}}},
]
DOCUMENTS = [{"title": "A", "text": "First & last."}, {"title": "B", "text": "Ünï", "n": 2}]


class Padded(Tokenizer):
    """A tokenizer that has every role filled, as one loaded from a folder."""

    @property
    def pad_id(self) -> int | None:
        return self.token_to_id("<pad>")

    @property
    def unk_id(self) -> int | None:
        return self.token_to_id("<unk>")


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
    return Padded.from_file(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def outcome(make: Callable[[], Any]) -> Any:
    """Return what a call gives, or that it refused."""
    try:
        return make()
    except Exception:
        return "refused"


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


def test_generation_blocks_are_what_fine_tuning_learns(ours: Tokenizer) -> None:
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
def test_fine_tuning_learns_what_transformers_masks(talk: str, template: str, ours: Tokenizer, theirs: Any) -> None:
    given = {"chat_template": template, "return_assistant_tokens_mask": True, "return_dict": True}
    expected = theirs.apply_chat_template(TALKS[talk], **given)
    ids, learned = chat.encode_conversation(ours, TALKS[talk], chat_template=template)
    assert ids == expected["input_ids"] and [int(told) for told in learned] == expected["assistant_masks"]


@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if name != "oddities"]
)  # which writes three letters of an answer
@pytest.mark.parametrize("talk", ["plain", "answered", "reasoned", "tools", "called"])
def test_what_is_learned_stands_in_the_text_that_transformers_writes(
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
def test_every_family_can_be_learned(family: str, ours: Tokenizer) -> None:
    for talk in ("plain", "reasoned"):
        _, learned = chat.encode_conversation(ours, TALKS[talk], chat_template=FAMILIES[family])
        assert any(learned) and not learned[0]


def test_a_block_whose_place_is_not_told_is_refused(ours: Tokenizer) -> None:
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
def test_files_are_read_as_transformers_reads_them(
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
def test_what_is_written_transformers_reads(template: Any, folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    write_chat_templates(tmp_path, {"default": "stale", "old": "stale"})
    write_chat_templates(tmp_path, template)
    assert transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template == template
    assert read_chat_templates(tmp_path, {}) == template
    assert not list(tmp_path.rglob(".*"))


# -- tools -------------------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    NUMBER = 3


HINTS = [
    int, float, str, bool, type(None), list, tuple, dict, Any, list[int], list[list[str]], dict[str, int], dict[int, list[str]],
    tuple[int, str], tuple[int], tuple[int, ...], Union[int, str], Union[int, None], int | str | None, list | tuple,
    Union[list[int], str], Literal["a", "b"], Literal[1, "x", None], Literal[True], Colour, enum.Enum("Empty", []), set, set[int],
    bytes, Callable[[int], int], object, Tokenizer, np.ndarray, python_types.FunctionType, Union[dict[str, int], list[int], None],
    tuple[()], list[Any], Optional[Colour],
]  # fmt: skip


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_types_become_the_same_schemas(hint: Any) -> None:
    expected = outcome(lambda: utilities._parse_type_hint(hint))
    assert outcome(lambda: type_schema(hint)) == expected


def no_docstring(a: int) -> int:
    return a


def no_hint(a) -> int:  # type: ignore[no-untyped-def]
    """Do.

    Args:
        a: One
    """
    return int(a)


def not_described(a: int, b: int) -> int:
    """Do.

    Args:
        a: One
    """
    return a + b


def odd_result(a: "int") -> set[int]:
    """Do

    Args:
      a: One (choices: [1, 2])

    Returns:
      Some
    """
    return {a}


def bad_choices(a: int) -> None:
    """Do.

    Args:
        a: One (choices: one, two)
    """


def nothing() -> None:
    """Do."""


class Holder:
    def method(self, a: int, *rest: str, flag: bool = False, **more: float) -> str:
        """Do a thing.

        Args:
            a: One.
            rest: Others.
            flag: Or
                not.
            more: Even more.
        """
        return ""


@pytest.mark.parametrize(
    "function",
    [
        get_weather,
        no_docstring,
        no_hint,
        not_described,
        odd_result,
        bad_choices,
        nothing,
        Holder().method,
        Holder.method,
        lambda: 1,
    ],
)
def test_functions_become_the_same_schemas(function: Callable[..., Any]) -> None:
    expected = outcome(lambda: utilities.get_json_schema(function))
    assert outcome(lambda: function_schema(function)) == expected
    assert json.dumps(outcome(lambda: function_schema(function))) == json.dumps(expected)  # the order of keys, too


def test_docstrings_are_parsed_alike() -> None:
    """Random arrangements of what makes a docstring hard to read."""
    bits = [
        "Args:",
        "Returns:",
        "Raises:",
        "\n",
        "\n",
        "\n",
        "    ",
        "  ",
        "\t",
        "x: ",
        "y:",
        "z: foo",
        "bar (int): q",
        "some text",
    ]
    chosen = random.Random(7)
    described = 0
    for _ in range(5000):
        text = "".join(chosen.choice(bits) for _ in range(chosen.randrange(1, 18))).strip()
        if text:
            expected = utilities.parse_google_format_docstring(text)
            assert parse_docstring(text) == expected, text
            described += bool(expected[1])
    assert described > 20


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
