"""OpenAI's own client against the server: what it reads is what the model's own generator gives."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import torch

openai = pytest.importorskip("openai", reason="the server is held to OpenAI's client")

MESSAGES = [{"role": "system", "content": "the dog"}, {"role": "user", "content": "the quick brown fox <|end|> jumps"}]
SAMPLED = {"temperature": 0.8, "top_p": 0.9, "seed": 3}
OWN = SAMPLED | {"max_new_tokens": 24}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def chat_ids(server, messages=MESSAGES, **options):
    return server.generator.tokenizer.apply_chat_template(messages, **options)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["small", "other", "caller"]
    assert client.models.retrieve("other").id == "other"
    with pytest.raises(openai.NotFoundError, match="no model 'none'; known: small, other"):
        client.models.retrieve("none")


def test_a_chat_is_the_generators_own_answer(client, server):
    answer = client.chat.completions.create(model="small", messages=MESSAGES, max_completion_tokens=24, **SAMPLED)
    choice = answer.choices[0]
    assert choice.message.content == server.generator.generate(chat_ids(server), **OWN)
    assert choice.message.role == "assistant" and choice.finish_reason == server.generator.last.finish_reason
    assert answer.usage.prompt_tokens == len(chat_ids(server))
    assert answer.usage.completion_tokens == len(server.generator.last.new_ids)
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.model == "small" and answer.object == "chat.completion"


def test_every_model_answers_by_its_name(client, server):
    answer = client.chat.completions.create(model="other", messages=MESSAGES, max_tokens=24, **SAMPLED)
    assert answer.choices[0].message.content == server.generators["other"].generate(chat_ids(server), **OWN)


def test_a_stream_is_the_same_answer_in_pieces(client, server):
    chunks = list(
        client.chat.completions.create(
            model="small",
            messages=MESSAGES,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
            **SAMPLED,
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == server.generator.generate(chat_ids(server), **OWN)
    assert len(deltas) > 10
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert not chunks[-1].choices and chunks[-1].usage.completion_tokens == 24
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_is_server_sent_events_to_the_letter(server):
    import httpx

    body = {"messages": MESSAGES, "max_tokens": 3, "stream": True, "seed": 1}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, done, end = response.text.split("\n\n")
    assert done == "data: [DONE]" and end == ""
    for line in lines:
        assert line.startswith("data: ") and json.loads(line[6:])["object"] == "chat.completion.chunk"


def test_choices_have_seeds_of_their_own(client, server):
    answer = client.chat.completions.create(model="small", messages=MESSAGES, max_tokens=12, n=3, **SAMPLED)
    own = [server.generator.generate(chat_ids(server), **OWN | {"seed": 3 + i, "max_new_tokens": 12}) for i in range(3)]
    assert [choice.message.content for choice in answer.choices] == own
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    chunks = client.chat.completions.create(
        model="small", messages=MESSAGES, max_tokens=12, n=3, stream=True, **SAMPLED
    )
    texts = ["", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == own


def test_stop_strings_penalties_and_biases(client, server):
    whole = server.generator.generate(chat_ids(server), **OWN)
    stop = whole[4:6]
    answer = client.chat.completions.create(
        model="small", messages=MESSAGES, max_tokens=24, stop=[stop, "~~~"], **SAMPLED
    )
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    penalised = client.chat.completions.create(
        model="small",
        messages=MESSAGES,
        max_tokens=24,
        presence_penalty=1.5,
        frequency_penalty=0.5,
        logit_bias={"17": 3.5},
        extra_body={"min_p": 0.02, "top_k": 30},
        **SAMPLED,
    )
    own = server.generator.generate(
        chat_ids(server),
        presence_penalty=1.5,
        frequency_penalty=0.5,
        penalty_scope="output",
        logit_bias={17: 3.5},
        min_p=0.02,
        top_k=30,
        **OWN,
    )
    assert penalised.choices[0].message.content == own != whole


def test_log_probabilities_of_a_chat(client, server):
    answer = client.chat.completions.create(
        model="small", messages=MESSAGES, max_tokens=8, logprobs=True, top_logprobs=3, **SAMPLED
    )
    server.generator.generate(chat_ids(server), **OWN | {"max_new_tokens": 8, "top_logprobs": 3})
    own = server.generator.last
    content = answer.choices[0].logprobs.content
    np.testing.assert_allclose([entry.logprob for entry in content], own.logprobs, rtol=1e-4)
    data = b"".join(bytes(entry.bytes) for entry in content)
    assert data.decode("utf-8", "replace") == answer.choices[0].message.content
    for entry, top in zip(content, own.top_logprobs, strict=True):
        np.testing.assert_allclose([other.logprob for other in entry.top_logprobs], [p for _, p in top], rtol=1e-4)
    chunks = client.chat.completions.create(
        model="small", messages=MESSAGES, max_tokens=8, logprobs=True, top_logprobs=3, stream=True, **SAMPLED
    )
    streamed = [e for c in chunks if c.choices and c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in content]


def test_completions_of_texts_and_ids(client, server):
    generator = server.generator
    texts = ["the quick", "jumps over"]
    ids = [generator.encode(text) for text in texts]
    own = [generator.generate(text, **SAMPLED, max_new_tokens=16) for text in texts]
    for prompt in (texts, ids):
        answer = client.completions.create(model="small", prompt=prompt, **SAMPLED)
        assert [choice.text for choice in answer.choices] == own
    for prompt in (texts[0], ids[0]):
        assert client.completions.create(model="small", prompt=prompt, **SAMPLED).choices[0].text == own[0]
    two = client.completions.create(model="small", prompt=texts, n=2, **SAMPLED)
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    assert [two.choices[0].text, two.choices[2].text] == own
    assert two.usage.prompt_tokens == sum(map(len, ids)) and two.usage.completion_tokens == 64


def test_echo_with_log_probabilities(client, server):
    generator = server.generator
    text = "the quick été"
    answer = client.completions.create(model="small", prompt=text, max_tokens=4, echo=True, logprobs=2, **SAMPLED)
    own = generator.generate(text, **SAMPLED, max_new_tokens=4, top_logprobs=2, prompt_logprobs=True)
    choice, sequence = answer.choices[0], generator.last
    assert choice.text == text + own
    assert choice.logprobs.token_logprobs[0] is None
    expected = [*sequence.prompt_logprobs[1:], *sequence.logprobs]
    np.testing.assert_allclose(choice.logprobs.token_logprobs[1:], expected, rtol=1e-4)
    for place, top in enumerate(choice.logprobs.top_logprobs[1:], start=1):
        assert 2 <= len(top) <= 3 and max(top.values()) >= choice.logprobs.token_logprobs[place]
    prompt = choice.logprobs.tokens[: answer.usage.prompt_tokens]
    for token, offset in zip(prompt, choice.logprobs.text_offset, strict=False):
        if not token.startswith("bytes:"):
            assert choice.text.startswith(token, offset)
    nothing = client.completions.create(model="small", prompt=text, max_tokens=0, echo=True, logprobs=0)
    assert nothing.choices[0].text == text and nothing.usage.completion_tokens == 0
    assert len(nothing.choices[0].logprobs.tokens) == nothing.usage.prompt_tokens
    streamed = list(
        client.completions.create(model="small", prompt=text, max_tokens=4, echo=True, stream=True, **SAMPLED)
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == choice.text


def test_embeddings_are_mean_hidden_states_of_length_one(client, server):
    model, texts = server.generator.model, ["the quick", "jumps over the lazy dog"]
    floats = client.embeddings.create(model="small", input=texts, encoding_format="float")
    packed = client.embeddings.create(model="small", input=[server.generator.encode(text) for text in texts])
    for text, one, other in zip(texts, floats.data, packed.data, strict=True):
        with torch.no_grad():
            mean = model.model(torch.tensor([server.generator.encode(text)]))[0].mean(0)
        np.testing.assert_allclose(one.embedding, (mean / mean.norm()).numpy(), atol=1e-6)
        np.testing.assert_allclose(other.embedding, one.embedding, atol=1e-6)
    import httpx

    raw = httpx.post(f"{server.url}/v1/embeddings", json={"input": texts[0], "encoding_format": "base64"}).json()
    vector = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(vector, floats.data[0].embedding, atol=1e-6)


def test_responses(client, server):
    talk = [{"role": "system", "content": "the dog"}, {"role": "user", "content": "the fox"}]
    own = server.generator.generate(chat_ids(server, talk), temperature=0, max_new_tokens=12)
    answer = client.responses.create(
        model="small", instructions="the dog", input="the fox", max_output_tokens=12, temperature=0
    )
    assert answer.output_text == own
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 12
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "the fox"}]}]
    with client.responses.stream(
        model="small", instructions="the dog", input=parts, max_output_tokens=12, temperature=0
    ) as stream:
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == own
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.incomplete" and events[-1].response.output_text == own
    with pytest.raises(openai.BadRequestError, match="previous_response_id is given; this server stores no"):
        client.responses.create(model="small", input="the fox", previous_response_id="resp_1")


def test_the_reasoning_effort_of_a_response_is_that_of_a_chat(client, server, monkeypatch):
    template = server.generator.tokenizer.chat_template
    monkeypatch.setattr(server.generator.tokenizer, "chat_template", template + "{{ reasoning_effort }}")
    asked = {"model": "small", "temperature": 0}
    for effort in ("low", "medium"):
        chat = client.chat.completions.create(messages=MESSAGES, reasoning_effort=effort, max_tokens=8, **asked)
        answer = client.responses.create(
            input=MESSAGES, reasoning={"effort": effort, "summary": None}, max_output_tokens=8, **asked
        )
        ids = chat_ids(server, reasoning_effort=effort)
        assert answer.usage.input_tokens == chat.usage.prompt_tokens == len(ids) > len(chat_ids(server))
        assert answer.output_text == chat.choices[0].message.content
        assert answer.reasoning.effort == effort
    with pytest.raises(openai.BadRequestError, match=r"reasoning\.summary is no field"):
        client.responses.create(input=MESSAGES, reasoning={"summary": "auto"}, **asked)


@pytest.mark.parametrize("stream", [False, True])
def test_responses_have_the_log_probabilities_of_all_tokens(client, stream):
    """Also of those whose text is held: half a character, or the beginning of a stop string."""
    asked = {"model": "small", "input": "the fox", "max_output_tokens": 20, "temperature": 0}
    found = client.responses.create(
        **asked, include=["message.output_text.logprobs"], stream=stream, extra_body={"stop": ["zq", "a fo"]}
    )
    if stream:
        events = list(found)
        found = events[-1].response
        deltas = [entry for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
        opened = next(event for event in events if event.type == "response.content_part.added")
        assert (opened.part.text, opened.part.logprobs) == ("", [])
        closed = next(event for event in events if event.type == "response.output_text.done")
        assert [entry.token for entry in closed.logprobs][: len(deltas)] == [entry.token for entry in deltas]
    (item,) = found.output
    assert len(item.content[0].logprobs) == 20 == found.usage.output_tokens
    assert (found.status, item.status) == ("incomplete", "incomplete")


def test_no_least_number_of_tokens_takes_the_place_of_the_files(client, server):
    config = server.generator.model.generation_config
    end = server.generator.tokenizer.special_tokens["<|end|>"]
    try:
        server.generator.model.generation_config = type(config)(config.values | {"min_new_tokens": 7})
        for least, count in ((None, 8), (0, 1)):
            answer = client.completions.create(
                model="small", prompt="the", logit_bias={str(end): 100}, extra_body={"min_tokens": least}
            )
            assert answer.usage.completion_tokens == count
    finally:
        server.generator.model.generation_config = config


def test_the_files_limit_of_new_tokens_holds(client, server):
    config = server.generator.model.generation_config
    try:
        for values, count in [({"max_new_tokens": 7}, 7), ({"max_length": 60}, None)]:
            server.generator.model.generation_config = type(config)(config.values | values)
            answer = client.chat.completions.create(model="small", messages=MESSAGES, temperature=0)
            assert answer.usage.completion_tokens == (count or 60 - answer.usage.prompt_tokens)
            assert answer.choices[0].finish_reason == "length"
    finally:
        server.generator.model.generation_config = config


def test_a_files_repetition_penalty_counts_the_prompt(client, server):
    config = server.generator.model.generation_config
    asked = {"model": "small", "messages": MESSAGES, "max_tokens": 1, "presence_penalty": 0.5}
    try:
        server.generator.model.generation_config = type(config)(config.values | {"repetition_penalty": 1.05})
        with pytest.raises(
            openai.BadRequestError,
            match=r"\(1\.05 in the model's generation_config\.json\) counts",
        ):
            client.chat.completions.create(**asked)
        client.chat.completions.create(**asked, extra_body={"repetition_penalty": 1})
    finally:
        server.generator.model.generation_config = config


def test_filters_that_an_order_leaves_out_need_no_value(client):
    asked = {"model": "small", "prompt": "the", "max_tokens": 4, "seed": 1}
    order = {"filter_order": ["top_k", "temperature"], "top_k": 5}
    found = client.completions.create(**asked, extra_body=order)
    assert found.choices[0].text == client.completions.create(**asked, extra_body={"top_k": 5}).choices[0].text


def test_errors_have_the_clients_classes(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="small", messages=MESSAGES, temperature=-1)
    assert refused.value.param == "temperature" and refused.value.code == "invalid_value"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    too_long = r"prompt has 1,\d\d\d tokens; expected at most 511"
    with pytest.raises(openai.BadRequestError, match=too_long) as long:
        client.completions.create(model="small", prompt="the quick brown fox " * 300)
    assert long.value.code == "context_length_exceeded" and long.value.param == "prompt"


def test_an_answer_that_fills_the_context_ends_by_length(client):
    answer = client.chat.completions.create(model="small", messages=MESSAGES, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length" and answer.usage.total_tokens == 512
