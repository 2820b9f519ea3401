"""Tool calls of each template family through HTTP: a script forces the ids that such a model would write."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bpe_llama import Tokenizer
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, TextGenerator
from tests.server.conftest import CORPUS, Running, serve

openai = pytest.importorskip("openai", reason="the server is held to OpenAI's client")

ADD, SUB = {"a": 1, "text": 'é}"['}, {"b": [2, {"c": None}]}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": {"type": "object"}}}
    for name in ("add", "sub")
]
QWEN = (
    "{% if tools %}<|im_start|>system\n# Tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}For each call: "
    "<tool_call>\n<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{% if tools and loop.last %}"
    '{% for t in tools %}{{ t | tojson }}{% endfor %}Respond as {"name": ..., "parameters": ...}. {% endif %}'
    "{{ m.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>"
    "\n\n{% endif %}"
)
MISTRAL = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS]{% else %}{{ m.content }}"
    "</s>{% endif %}{% endfor %}"
)
TEMPLATES = {"qwen": QWEN, "llama3": LLAMA3, "mistral": MISTRAL}
ENDS = {"qwen": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>"}
SPECIAL = {
    "qwen": ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"],
    "mistral": ["</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[ARGS]"],
}


def dumped(name: str, arguments: Any, key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False)


ONE = [("add", ADD)]
BOTH = [("add", ADD), ("sub", SUB)]
CASES = [
    ("qwen", f"<tool_call>\n{dumped('add', ADD)}\n</tool_call>", None, ONE),
    (
        "qwen",
        f"Well.\n<tool_call>\n{dumped('add', ADD)}\n</tool_call>\n<tool_call>\n{dumped('sub', SUB)}\n</tool_call>",
        "Well.\n",
        BOTH,
    ),
    ("llama3", dumped("add", ADD, "parameters"), None, ONE),
    ("llama3", "<|python_tag|>" + dumped("add", ADD, "parameters"), None, ONE),
    ("llama3", f"{dumped('add', ADD, 'parameters')}; {dumped('sub', SUB, 'parameters')}", None, BOTH),
    ("mistral", f"[TOOL_CALLS][{dumped('add', ADD)}]", None, ONE),
    ("mistral", f"[TOOL_CALLS] [{dumped('add', ADD)}, {dumped('sub', SUB)}]", None, BOTH),
    ("mistral", f"[TOOL_CALLS]add[ARGS]{json.dumps(ADD)}[TOOL_CALLS]sub[ARGS]{json.dumps(SUB)}", None, BOTH),
]
"""Family, what the model writes, the text of the answer, its calls."""


def generator_of(family: str) -> TextGenerator:
    tokenizer = Tokenizer.train_from_iterator(CORPUS, vocab_size=320, special_tokens=SPECIAL[family], progress=False)
    tokenizer.chat_template = TEMPLATES[family]
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.special_tokens[ENDS[family]],
    )
    return TextGenerator(LlamaForCausalLM(config, seed=0).eval(), tokenizer)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    yield from serve({family: generator_of(family) for family in TEMPLATES}, slots=2)


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def script(server: Running, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes a model write a text, by a logits processor that no client can give."""
    submit = server.scheduler.submit

    def write(family: str, text: str) -> None:
        ids = server.generators[family].tokenizer.encode(text + ENDS[family], allowed_special="all")

        async def forced(model: str, prompt: list[int], **options: Any) -> Any:
            def force(ids_1T: Tensor, scores_1V: Tensor) -> Tensor:
                scores_1V = torch.full_like(scores_1V, -torch.inf)
                scores_1V[0, ids[ids_1T.shape[1] - len(prompt)]] = 0.0
                return scores_1V

            return await submit(model, prompt, **options | {"logits_processor": force})

        monkeypatch.setattr(server.scheduler, "submit", forced)

    return write


def arguments_of(calls: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


@pytest.mark.parametrize(("family", "text", "content", "calls"), CASES)
def test_calls_of_each_family(client, script, family, text, content, calls) -> None:
    script(family, text)
    ask = {"model": family, "messages": [{"role": "user", "content": "the fox"}], "tools": TOOLS, "temperature": 0}
    choice = client.chat.completions.create(**ask).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", content)
    assert arguments_of(choice.message.tool_calls) == calls
    ids = [call.id for call in choice.message.tool_calls]
    assert len(set(ids)) == len(ids) and all(len(name) == 9 for name in ids if family == "mistral")

    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**ask, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == (content or "")
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["tool_calls"]
    deltas = [delta for chunk in chunks for delta in chunk.delta.tool_calls or []]
    assert len(deltas) > 4 * len(calls), "arguments come in pieces"
    found: dict[int, list[str]] = {}
    for delta in deltas:
        if delta.index not in found:
            assert delta.id and delta.type == "function"
            found[delta.index] = [delta.function.name, ""]
        else:
            assert delta.id is None and delta.function.name is None
        found[delta.index][1] += delta.function.arguments
    assert [(name, json.loads(arguments)) for name, arguments in found.values()] == calls

    one = client.chat.completions.create(**ask, parallel_tool_calls=False).choices[0]
    assert arguments_of(one.message.tool_calls) == calls[:1] and one.finish_reason == "tool_calls"


@pytest.mark.parametrize("family", TEMPLATES)
def test_calls_that_are_cut_off_or_none(client, script, server, family) -> None:
    """A call that the length cuts off keeps that reason; text that only looks like a call is text."""
    text = next(text for name, text, _, _ in CASES if name == family)
    script(family, text)
    ask = {"model": family, "messages": [{"role": "user", "content": "the fox"}], "tools": TOOLS, "temperature": 0}
    tokenizer = server.generators[family].tokenizer
    ids = tokenizer.encode(text, allowed_special="all")
    begun = next(place for place in range(len(ids)) if tokenizer.decode(ids[:place]).count("{") == 2)
    choice = client.chat.completions.create(**ask, max_tokens=begun + 2).choices[0]
    assert choice.finish_reason == "length" and choice.message.tool_calls[0].function.name == "add"
    assert json.dumps(ADD, ensure_ascii=False).startswith(choice.message.tool_calls[0].function.arguments)
    script(family, "[1, 2] and {")
    choice = client.chat.completions.create(**ask).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("stop", "[1, 2] and {")
    assert choice.message.tool_calls is None


def test_special_tokens_and_further_ends(client, script, server) -> None:
    script("mistral", "so [INST]it is[/INST]!")
    ask = {"model": "mistral", "messages": [{"role": "user", "content": "the fox"}], "logprobs": True}
    special = server.generators["mistral"].tokenizer.special_tokens
    for fields, expected in [
        ({}, "so it is!"),
        ({"skip_special_tokens": False}, "so [INST]it is[/INST]!"),
        ({"stop_token_ids": [special["[/INST]"]]}, "so it is"),
        ({"stop_token_ids": [special["[INST]"]], "ignore_eos": True, "skip_special_tokens": False}, "so "),
        ({"stop": "[/INST]"}, "so [INST]it is"),
    ]:
        choice = client.chat.completions.create(**ask, extra_body=fields).choices[0]
        assert (choice.message.content, choice.finish_reason) == (expected, "stop")
        if "stop" not in fields:
            shown = [token.token for token in choice.logprobs.content if token.token not in ("[INST]", "[/INST]")]
            assert "".join(shown) == expected.replace("[INST]", "").replace("[/INST]", "")
    (text,) = client.completions.create(model="mistral", prompt=[65, 66], logprobs=0, max_tokens=30).choices
    assert text.text == "so it is!"
    offsets, tokens = text.logprobs.text_offset, text.logprobs.tokens
    assert [text.text[place:].startswith(token) for place, token in zip(offsets, tokens, strict=True)] == [
        token not in special for token in tokens
    ]


@pytest.mark.parametrize("family", TEMPLATES)
def test_calls_that_are_required(client, script, family) -> None:
    """The grammar holds them to the form of the family, one or several, and they are no text of the answer."""
    pytest.importorskip("llguidance", reason="calls are forced by llguidance")
    ask = {"model": family, "messages": [{"role": "user", "content": "the fox"}], "tools": TOOLS, "temperature": 0}
    named = {"type": "function", "function": {"name": "sub"}}
    texts = [text for name, text, _, calls in CASES if name == family and calls == ONE]
    add, both = texts[0], next(text for name, text, _, calls in CASES if name == family and calls == BOTH)
    sub = add.replace(json.dumps(ADD, ensure_ascii=False), json.dumps(SUB)).replace("add", "sub")
    for text, calls, options in (
        (both.removeprefix("Well.\n"), BOTH, {"tool_choice": "required"}),
        (add, ONE, {"tool_choice": "required", "parallel_tool_calls": True}),
        (add, ONE, {"tool_choice": "required", "parallel_tool_calls": False}),
        (sub, [("sub", SUB)], {"tool_choice": named}),
    ):
        script(family, text)
        choice = client.chat.completions.create(**ask, **options).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert arguments_of(choice.message.tool_calls) == calls
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**ask, **options, stream=True)]
        assert not any(chunk.delta.content for chunk in chunks) and chunks[-1].finish_reason == "tool_calls"
    script(family, both.removeprefix("Well.\n"))  # the answer ends after a call, or cannot go on
    with contextlib.suppress(openai.BadRequestError):
        one = client.chat.completions.create(**ask, tool_choice="required", parallel_tool_calls=False).choices[0]
        assert arguments_of(one.message.tool_calls) == ONE
    script(family, f"[{dumped('add', ADD)}]")
    with pytest.raises(openai.BadRequestError):  # nor JSON without the marks of the family
        client.chat.completions.create(**ask, tool_choice="required")


@pytest.mark.parametrize("options", [{}, {"tool_choice": "required"}])
def test_several_calls_of_the_responses_endpoint(client, script, options) -> None:
    if options:
        pytest.importorskip("llguidance", reason="calls are forced by llguidance")
    script("mistral", f"[TOOL_CALLS] [{dumped('add', ADD)}, {dumped('sub', SUB)}]")
    flat = [{"type": "function", **tool["function"], "strict": None} for tool in TOOLS]
    ask = {"model": "mistral", "input": "the fox", "tools": flat, "temperature": 0} | options
    calls = client.responses.create(**ask).output
    assert [(call.type, call.name, json.loads(call.arguments)) for call in calls] == [
        ("function_call", name, arguments) for name, arguments in BOTH
    ]
    events = list(client.responses.create(**ask, stream=True))
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [(item.name, json.loads(item.arguments)) for item in done] == BOTH
    assert events[-1].type == "response.completed"
