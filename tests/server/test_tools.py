"""Tool calls: the parser on every family's form, cut anywhere, and a model that was trained to call."""

from __future__ import annotations

import copy
import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpe_llama.model.generation.structured import Grammars
from bpe_llama.model.server.api.forced_calls import call_grammar
from bpe_llama.model.server.api.tools import HERMES, JSON, LLAMA3, MISTRAL, ToolParser, family_of
from tests.cost import LINEAR, growth

openai = pytest.importorskip("openai", reason="the server is held to OpenAI's client")

CALL = '{"name": "add", "arguments": {"a": 1}}'
ADD, SUB = ("add", '{"a": 1}'), ("sub", '{"b": "x;}y"}')
CASES = [
    (HERMES, f"Well.\n<tool_call>\n{CALL}\n</tool_call>", "Well.\n", [ADD]),
    (
        HERMES,
        f'<tool_call>{CALL}</tool_call>\n<tool_call>{{"arguments": {SUB[1]}, "name": "sub"}}</tool_call>\n',
        "",
        [ADD, SUB],
    ),
    (HERMES, '<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
    (HERMES, '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [ADD]),
    (HERMES, "a < b <tool_cal", "a < b <tool_cal", []),
    (HERMES, "<tool_call>hello</tool_call>", "<tool_call>hello</tool_call>", []),
    (HERMES, '<tool_call>{"nam": 3}</tool_call> yes', '<tool_call>{"nam": 3}</tool_call> yes', []),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": 1', "", [("add", '{"a": 1')]),  # the length ran out
    (MISTRAL, f'[TOOL_CALLS][{CALL}, {{"name": "sub", "arguments": {SUB[1]}}}]', "", [ADD, SUB]),
    (MISTRAL, f'[TOOL_CALLS]add[ARGS]{{"a": 1}}[TOOL_CALLS]sub[CALL_ID]abc123def[ARGS]{SUB[1]}', "", [ADD, SUB]),
    (LLAMA3, f'{{"name": "add", "parameters": {{"a": 1}}}}; {{"name": "sub", "parameters": {SUB[1]}}}', "", [ADD, SUB]),
    (LLAMA3, '<|python_tag|>{"type": "function", "name": "add", "parameters": {"a": 1}}', "", [ADD]),
    (LLAMA3, '{"name": "other", "parameters": {}}', '{"name": "other", "parameters": {}}', []),
    (LLAMA3, '{"answer": [42]} is', '{"answer": [42]} is', []),
    (LLAMA3, f"Sure: {CALL}", f"Sure: {CALL}", []),
    (JSON, f' [{CALL}, {{"name": "sub", "arguments": {SUB[1]}}}]', "", [ADD, SUB]),
    (JSON, "[1, 2]", "[1, 2]", []),
    (JSON, f"{CALL} and more", "and more", [ADD]),
    # Text after a marker that was none is searched for calls, and none of it is lost.
    (HERMES, f"I use <tool_call> tags. <tool_call>{CALL}</tool_call>", "I use <tool_call> tags. ", [ADD]),
    (HERMES, '<tool_call>\n{"a": 1}\n</tool_call>', '<tool_call>\n{"a": 1}\n</tool_call>', []),
    (HERMES, f"<tool_call> \n</tool_call><tool_call>{CALL}</tool_call>", "<tool_call> \n</tool_call>", [ADD]),
    (HERMES, f"<tool_call>{CALL}</tool_call><tool_call>no", "<tool_call>no", [ADD]),
    (MISTRAL, f"[TOOL_CALLS] is it. [TOOL_CALLS][{CALL}]", "[TOOL_CALLS] is it. ", [ADD]),
    (MISTRAL, f"[TOOL_CALLS][TOOL_CALLS] [{CALL}]", "[TOOL_CALLS]", [ADD]),
    (MISTRAL, "[TOOL_CALLS] add", "[TOOL_CALLS] add", []),
    (JSON, f'{CALL}, {{"b": 2}}', ', {"b": 2}', [ADD]),
    # The first of two names and of two objects of arguments counts: they may have been streamed before the second.
    (LLAMA3, '{"name": "add", "parameters": {"a": 1}, "name": "other", "arguments": {}}', "", [ADD]),
]
FAMILIES = (HERMES, MISTRAL, LLAMA3, JSON)
PARTS = [part for family in FAMILIES for part in (family.begin, family.end) if part]
PARTS += ["[ARGS]", "[CALL_ID]", "add", "sub", "x9", "hello", *' \n\xa0,;:[]{}<"1', ", ", CALL, '{"name": "no"}']
PARTS += ['{"name": "add", "parameters": {"s": "}{\\""}}', '{"arguments": {"a": [1]}, "name": "add"}']
PARTS += ['{"name": "add", "arguments": "{\\"a\\": 2}"}', '{"name": "add", "arguments": 5, "name": "no"}', '{"a": {}}']


def parse(family, text, sizes, parallel=True):
    parser, deltas, place = ToolParser(family, ["add", "sub"], parallel), [], 0
    while place < len(text):
        size = next(sizes)
        deltas += parser.feed(text[place : place + size])
        place += size
    deltas += parser.finish()
    calls: list[list[str]] = []
    for delta in deltas:
        if delta.name is not None:
            assert delta.call == len(calls)
            calls.append([delta.name, ""])
        if delta.call is not None:
            calls[delta.call][1] += delta.arguments
    return "".join(delta.content for delta in deltas), [tuple(call) for call in calls]


@pytest.mark.parametrize(("family", "text", "content", "calls"), CASES)
def test_a_call_is_found_wherever_the_text_is_cut(family, text, content, calls):
    draw = random.Random(0)
    for sizes in (iter([10_000]), iter(lambda: 1, 0), iter(lambda: draw.randint(1, 7), 0)):
        assert parse(family, text, sizes) == (content, calls)


def texts_of(family):
    parts = st.one_of(st.sampled_from([family.begin, family.end]), st.sampled_from(PARTS))
    return st.tuples(st.just(family), st.lists(parts, max_size=8).map("".join))


@given(st.sampled_from(FAMILIES).flatmap(texts_of), st.lists(st.integers(1, 9), min_size=1), st.booleans())
@settings(deadline=None, max_examples=300)
def test_the_answer_does_not_depend_on_where_the_text_is_cut(answer, sizes, parallel):
    family, text = answer
    whole = parse(family, text, iter([10_000]), parallel)
    assert parse(family, text, iter(lambda: 1, 0), parallel) == whole
    assert parse(family, text, itertools.cycle(sizes), parallel) == whole
    assert whole[1] or whole[0] == text  # without calls, all of the text is the answer's


def test_one_call_at_most():
    text = f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>"
    assert parse(HERMES, text, iter(lambda: 3, 0), parallel=False) == ("", [ADD])


def test_arguments_are_streamed_in_pieces_after_the_name():
    parser = ToolParser(HERMES, ["add"])
    assert parser.feed('<tool_call>{"name": "add", "argum') == []
    first = parser.feed('ents": {"a"')
    assert [(delta.name, delta.arguments) for delta in first] == [("add", ""), (None, '{"a"')]
    assert [delta.arguments for delta in parser.feed(": 1}}</tool_call>")] == [": 1}"]


@pytest.mark.parametrize(
    ("family", "begin", "rest", "size", "pieces"),
    [
        (HERMES, '<tool_call>{"name": "add", "arguments": {"a": "', "c", 40_000, False),
        (MISTRAL, "[TOOL_CALLS]", "b", 2_000, True),
        (JSON, "[", "[", 40_000, False),
        (MISTRAL, "", "[TOOL_CALLS]x ", 10_000, False),
    ],
)
def test_the_cost_is_linear_in_the_text(family, begin, rest, size, pieces):
    def parse(size):
        parser, length = ToolParser(family, ["add"]), 0
        given = [rest] * size if pieces else [rest * size]
        for deltas in (parser.feed(begin), *map(parser.feed, given), parser.finish()):
            length += sum(len(delta.content + delta.arguments) for delta in deltas)
        assert length >= size

    assert growth(parse, size) < LINEAR


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("{{ '<|start_header_id|>' }}", "llama3"),
        ("{{ messages }}", "json"),
    ],
)
def test_the_template_tells_the_family(template, family):
    assert family_of(template).name == family


@pytest.mark.parametrize(
    ("family", "template", "text"),
    [
        (HERMES, "", f"<tool_call>\n{CALL}\n</tool_call>"),
        (MISTRAL, "", f"[TOOL_CALLS][{CALL}]"),
        (MISTRAL, "[ARGS]", '[TOOL_CALLS]add[ARGS]{"a": 1}'),
        (LLAMA3, "", CALL.replace("arguments", "parameters")),
        (JSON, "", f"[{CALL}]"),
    ],
)
def test_the_grammar_of_a_forced_call(server, family, template, text):
    """It allows what the family's parser reads, several calls only if there may be several, and nothing else."""
    pytest.importorskip("llguidance", reason="grammars are llguidance's")
    generator, functions = server.generator, [copy.deepcopy(TOOLS[0]["function"]), {"name": "sub"}]
    defined = {"properties": {"a": {"$ref": "#/$defs/number"}}, "$defs": {"number": {"type": "integer"}}}
    functions[0]["parameters"] |= defined  # as pydantic writes schemas: within a larger schema it would not be found
    grammars = Grammars(generator.tokenizer, generator.model.config.vocab_size)

    def allowed(text, **options):
        grammar = call_grammar(family, functions, template=template, **options)
        ids = generator.tokenizer.encode(text)
        matcher = grammars.constraint({"grammar": grammar}).matcher.deep_copy()
        return matcher.validate_tokens(ids) == len(ids)

    joined = {HERMES: "\n", LLAMA3: "; "}.get(family, "")
    twice = text + joined + text if not text.endswith("]") else text[:-1] + ", " + CALL + "]"
    one = text if family is not JSON else CALL
    assert allowed(text, several=True) and allowed(twice, several=True) and allowed(one, several=False)
    assert parse(family, twice, iter([10_000])) == ("", [ADD, ADD]) and not allowed(twice, several=False)
    assert not allowed(text.replace('"a": 1', '"a": "x"'), several=True)
    assert not allowed(text.replace("add", "other"), several=True) and not allowed("Well. " + text, several=True)


# ---- through the server, with a model that learned to call ----

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds one.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        },
    }
]
ASK = {"model": "caller", "messages": [{"role": "user", "content": "the fox"}], "temperature": 0, "max_tokens": 64}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_a_call_of_a_model(client):
    choice = client.chat.completions.create(**ASK, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "add" and json.loads(call.function.arguments) == {"a": 1}
    chunks = list(client.chat.completions.create(**ASK, tools=TOOLS, stream=True))
    deltas = [d for chunk in chunks for d in chunk.choices[0].delta.tool_calls or []]
    assert deltas[0].function.name == "add" and deltas[0].id and deltas[0].index == 0
    assert all(delta.id is None and delta.function.name is None for delta in deltas[1:])
    assert json.loads("".join(delta.function.arguments for delta in deltas)) == {"a": 1}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_without_tools_a_call_is_text(client):
    """The same text for tools that the client does not offer; none is text as well."""
    assert client.chat.completions.create(**ASK, tools=TOOLS, tool_choice="none").choices[0].message.tool_calls is None


def test_a_call_in_the_history_reaches_the_template(client, server):
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "the fox"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ]
    answer = client.chat.completions.create(model="small", messages=messages, temperature=0, max_tokens=8)
    told = [dict(messages[0]), dict(messages[1], content=""), dict(messages[2])]
    told[1]["tool_calls"] = [{**call, "function": {"name": "add", "arguments": {"a": 1}}}]
    ids = server.generator.tokenizer.apply_chat_template(told)
    assert answer.choices[0].message.content == server.generator.generate(ids, temperature=0, max_new_tokens=8)
    broken = json.loads(json.dumps(messages))
    broken[1]["tool_calls"][0]["function"]["arguments"] = "[1]"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="small", messages=broken)
    assert refused.value.param == "messages[1].tool_calls[0].function.arguments"


def test_calls_of_the_responses_endpoint(client):
    flat = [{"type": "function", **TOOLS[0]["function"], "strict": None}]
    options = {"model": "caller", "input": "the fox", "tools": flat, "temperature": 0, "max_output_tokens": 64}
    (call,) = client.responses.create(**options).output
    assert call.type == "function_call" and call.name == "add" and json.loads(call.arguments) == {"a": 1}
    events = list(client.responses.create(**options, stream=True))
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert json.loads("".join(pieces)) == {"a": 1} and events[-1].type == "response.completed"


def test_parts_of_the_history_are_text(client):
    """A result in parts, and a refusal, which OpenAI's types allow."""
    call = {"type": "function_call", "call_id": "1", "name": "add", "arguments": "{}"}
    found = []
    for output, refused in (
        ("5", "no"),
        ([{"type": "input_text", "text": "5"}], [{"type": "refusal", "refusal": "no"}]),
    ):
        result = {"type": "function_call_output", "call_id": "1", "output": output}
        talk = [{"role": "user", "content": "the fox"}, call, result, {"role": "assistant", "content": refused}]
        chat = [talk[0], talk[3], {"role": "user", "content": "a dog"}]
        answer = client.responses.create(model="small", input=talk, temperature=0, max_output_tokens=8)
        said = client.chat.completions.create(model="small", messages=chat, temperature=0, max_tokens=8)
        found.append((answer.output_text, answer.usage.input_tokens, said.choices[0].message.content))
    assert found[0] == found[1] and found[0][0]


def test_tool_choices_that_cannot_be(client):
    for options, param in (
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice"),
        ({"tools": TOOLS * 2}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**ASK, **options)
        assert refused.value.param == param
