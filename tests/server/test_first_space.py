"""A tokenizer that drops the first space of a text, as SentencePiece's do: where tokens begin, and continued texts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import httpx
import pytest

from bpe_llama import Tokenizer, _core
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, TextGenerator
from tests.server.conftest import Running, serve

PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{i:02X}>", 0.0, 6) for i in range(256))]
PIECES += [("▁a", -1.0, 1), ("▁b", -2.0, 1), ("▁", -3.0, 1), ("a", -4.0, 1), ("b", -5.0, 1)]
A = 259
"""The id of ``▁a``."""
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }} {{ m.content }}"
    "{% if not loop.last or add_generation_prompt %}</s>{% endif %}{% endfor %}"
)
THREE = {"max_tokens": 3, "logit_bias": {str(A): 100}}
"""The answer is ``▁a`` three times."""


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    added = [(PIECES[i][0], i, True, False, False) for i in range(3)]
    core = _core.Tokenizer.build_from_gguf_pieces(PIECES, True, added)
    tokenizer = Tokenizer(core.with_ends(1, 2, None, None))
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    )
    yield from serve({"spaces": TextGenerator(LlamaForCausalLM(config, seed=1).eval(), tokenizer)}, slots=2)


@pytest.mark.parametrize(
    ("fields", "text", "offsets"),
    [
        ({"prompt": "a b"}, " a a a", [0, 2, 4]),
        ({"prompt": "a b", "echo": True}, "a b a a a", [0, 1, 3, 5, 7]),
        ({"prompt": [A]}, "a a a", [0, 1, 3]),
        ({"prompt": [A], "echo": True}, "aa a a", [0, 1, 2, 4]),
        ({"prompt": ""}, "a a a", [0, 1, 3]),
        ({"prompt": "", "echo": True}, "a a a", [0, 0, 1, 3]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_offsets_are_where_tokens_begin_in_the_text(server, fields, text, offsets, stream):
    answer = httpx.post(server.url + "/v1/completions", json=THREE | fields | {"logprobs": 0, "stream": stream}).text
    lines = [line.removeprefix("data: ") for line in answer.split("\n") if line and line != "data: [DONE]"]
    choices = [json.loads(line)["choices"][0] for line in lines]
    assert "".join(choice["text"] for choice in choices) == text
    assert [place for choice in choices if choice["logprobs"] for place in choice["logprobs"]["text_offset"]] == offsets


def test_a_continued_message_keeps_its_space(server):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a b"}]
    for content, text in (("a b", " a a a"), ("", "a a a")):
        messages[1]["content"] = content
        body = THREE | {"messages": messages, "continue_final_message": True}
        answer = httpx.post(server.url + "/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize(("continues", "text"), [(False, "a a a"), (True, " a a a")])
def test_an_answer_that_continues_the_text_of_ids_keeps_its_space(server, continues, text):
    async def answer():
        options = {"max_new_tokens": 3, "logit_bias": {A: 100.0}, "continues": continues}
        return "".join([update.text async for update in server.scheduler.generate("spaces", [1, A], **options)])

    assert asyncio.run(answer()) == text
