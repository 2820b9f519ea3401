# ruff: noqa: E501, UP045 -- templates stand as their authors write them
"""Chat templates in the style of published models'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Optional

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


def outcome(make: Callable[[], Any]) -> Any:
    """Return what a call gives, or that it refused."""
    try:
        return make()
    except Exception:
        return "refused"


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
