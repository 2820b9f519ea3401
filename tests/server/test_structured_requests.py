"""Answers that must parse: `response_format`, `structured_outputs`, and calls that `tool_choice` asks for."""

from __future__ import annotations

import json
import re
from typing import Literal

import pytest

openai = pytest.importorskip("openai", reason="the server is held to OpenAI's client")
pytest.importorskip("llguidance", reason="structured output runs on llguidance")
jsonschema = pytest.importorskip("jsonschema", reason="answers are validated with jsonschema")

MESSAGES = [{"role": "user", "content": "the fox"}]
OPTIONS = {"model": "small", "messages": MESSAGES, "max_tokens": 200, "temperature": 0.7, "seed": 1}
SCHEMA = {
    "type": "object",
    "properties": {"dog": {"enum": ["lazy", "quick"]}, "jumps": {"type": "integer", "minimum": 0, "maximum": 12}},
    "required": ["dog", "jumps"],
    "additionalProperties": False,
}
FINE = {"type": "json_schema", "json_schema": {"name": "fox", "schema": SCHEMA}}
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "maxProperties": 0}}},
]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_a_json_schema(client):
    wanted = {"type": "json_schema", "json_schema": {"name": "fox", "schema": SCHEMA, "strict": True}}
    choice = client.chat.completions.create(**OPTIONS, response_format=wanted).choices[0]
    jsonschema.validate(json.loads(choice.message.content), SCHEMA)
    chunks = client.chat.completions.create(**OPTIONS, response_format=wanted, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    text = {"format": {"type": "json_schema", "name": "fox", "schema": SCHEMA}}
    options = {"max_output_tokens": 200, "temperature": 0.7, "extra_body": {"seed": 1}}
    response = client.responses.create(model="small", input="the fox", text=text, **options)
    assert response.output_text == choice.message.content


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the client's own
def test_what_the_client_parses_goes_back_into_the_conversation(client):
    pydantic = pytest.importorskip("pydantic", reason="the client parses into pydantic's models")
    fox = pydantic.create_model("fox", dog=(Literal["lazy", "quick"], ...), jumps=(bool, ...))
    tools = [openai.pydantic_function_tool(fox, name="add")]
    for wanted in ({"response_format": fox}, {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}):
        said = client.chat.completions.parse(**OPTIONS, **wanted).choices[0].message
        parsed = said.tool_calls[0].function.parsed_arguments if said.tool_calls else said.parsed
        assert isinstance(parsed, fox)
        plain = {"role": "assistant", "content": said.content}
        if said.tool_calls:
            call = said.tool_calls[0]
            function = {"name": call.function.name, "arguments": call.function.arguments}
            plain["tool_calls"] = [{"id": call.id, "type": "function", "function": function}]
        answers = [
            client.chat.completions.create(**OPTIONS | {"messages": [*MESSAGES, turn, *MESSAGES], "max_tokens": 8})
            for turn in (said, plain)
        ]
        assert answers[0].choices == answers[1].choices


def test_regexes_and_choices(client):
    for wanted, pattern in (({"regex": "[a-c]{3}-[0-9]"}, "[a-c]{3}-[0-9]"), ({"choice": ["fox", "dog"]}, "fox|dog")):
        answer = client.completions.create(
            model="small", prompt="the", max_tokens=20, seed=2, extra_body={"structured_outputs": wanted}
        )
        assert re.fullmatch(pattern, answer.choices[0].text)


def test_a_call_that_is_asked_for(client):
    choice = client.chat.completions.create(**OPTIONS, tools=TOOLS, tool_choice="required").choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls[0].function.name in ("add", "stop")
    named = {"type": "function", "function": {"name": "add"}}
    (call,) = client.chat.completions.create(**OPTIONS, tools=TOOLS, tool_choice=named).choices[0].message.tool_calls
    assert call.function.name == "add"
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


def test_a_schema_that_is_none_is_refused(client):
    wanted = {"type": "json_schema", "json_schema": {"name": "fox", "schema": {"type": "fox"}}}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**OPTIONS, response_format=wanted)
    large = {"type": "json_schema", "json_schema": {"name": "fox", "schema": {"description": "x" * 70_000}}}
    with pytest.raises(openai.BadRequestError, match=r"response_format.json_schema.schema has over 65,536 bytes"):
        client.chat.completions.create(**OPTIONS, response_format=large)


def test_an_error_names_the_field_with_the_schema(client):
    none = {"type": "object", "properties": {"dog": {"type": "fox"}}}
    wanted = {"type": "json_schema", "json_schema": {"schema": none}}
    tool = {"name": "add", "parameters": none}
    cases = [
        ("chat/completions", "tools", {"tools": [{"type": "function", "function": tool}], "tool_choice": "required"}),
        ("responses", "tools", {"tools": [{"type": "function"} | tool], "tool_choice": "required"}),
        ("chat/completions", "response_format", {"response_format": wanted}),
        ("completions", "response_format", {"response_format": wanted}),
        ("responses", "text.format", {"text": {"format": {"type": "json_schema", "name": "fox", "schema": none}}}),
        ("chat/completions", "structured_outputs", {"structured_outputs": {"regex": "(a"}}),
        ("completions", "structured_outputs", {"structured_outputs": {"grammar": "start: ("}}),
        ("completions", "structured_outputs.json", {"structured_outputs": {"json": "[1]"}}),
        ("completions", "response_format", {"response_format": FINE, "structured_outputs": {"json": SCHEMA}}),
        ("chat/completions", "response_format", {"response_format": FINE, "structured_outputs": {"json": SCHEMA}}),
    ]
    prompts = {
        "chat/completions": {"messages": MESSAGES},
        "completions": {"prompt": "the"},
        "responses": {"input": "the"},
    }
    for endpoint, field, body in cases:
        with pytest.raises(openai.BadRequestError) as raised:
            client.post(f"/{endpoint}", body={"model": "small"} | prompts[endpoint] | body, cast_to=object)
        assert raised.value.param == field, body
