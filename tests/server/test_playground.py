"""The page's endpoints: what they answer, and what they refuse."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from bpe_llama import Tokenizer
from bpe_llama.playground import app, library, playground, tokens

FILE = {"Content-Type": "application/octet-stream"}
TEXT = "low lower lowest, slow slower slowest; 你好 🙂 <|end|>"


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    small = Tokenizer.train_from_iterator(["low lower lowest"], 262, special_tokens=["<|end|>"], progress=False)
    large = Tokenizer.train_from_iterator([TEXT] * 3, 278, special_tokens=["<|end|>"], progress=False)
    large.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
    return {"small": small, "large": large}


@pytest.fixture
def client(tokenizers: dict[str, Tokenizer]) -> Iterator[TestClient]:
    with TestClient(playground(tokenizers), base_url="http://127.0.0.1") as client:
        yield client


def refused(client: TestClient, path: str, body: object, status: int = 400) -> dict[str, str]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error: dict[str, str] = answer.json()["error"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    return error


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", ["small", "large"])
def test_tokens_are_those_of_the_tokenizer(
    client: TestClient, tokenizers: dict[str, Tokenizer], name: str, special: bool
) -> None:
    tok = tokenizers[name]
    answer = client.post("/playground/tokens", json={"tokenizer": name, "text": TEXT, "special": special}).json()
    expected = tok.encode(TEXT, allowed_special="all" if special else ())
    assert [token["id"] for token in answer["tokens"]] == expected and answer["count"] == len(expected)
    assert b"".join(bytes.fromhex(token["bytes"]) for token in answer["tokens"]) == TEXT.encode()
    assert any(token["special"] for token in answer["tokens"]) == special
    for token in answer["tokens"]:
        assert bytes.fromhex(token["bytes"]) in TEXT[token["start"] : token["end"]].encode()


def test_tokens_around_a_text_stand_for_no_characters(tmp_path: Path) -> None:
    small = Tokenizer.train_from_iterator(["low lower lowest"], 262, special_tokens=["<s>"], progress=False)
    small.save(tmp_path / "tokenizer.json")
    file = json.loads((tmp_path / "tokenizer.json").read_text())
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    file["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [small.special_tokens["<s>"]], "tokens": ["<s>"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    client = TestClient(playground({"a": Tokenizer.from_file(tmp_path)}), base_url="http://127.0.0.1")
    for template in (False, True):
        tokens = client.post("/playground/tokens", json={"text": "low", "template": template}).json()["tokens"]
        spans = [(token["text"], token["start"], token["end"]) for token in tokens]
        assert spans == [("<s>", None, None)] * template + [("low", 0, 3)]
    body = {"text": "<s>", "template": True, "special": True}  # the second token is the text
    found = client.post("/playground/tokens", json=body).json()["tokens"]
    assert [(token["start"], token["end"]) for token in found] == [(None, None), (0, 3)]
    counts = [
        client.post("/tokenize", json={"prompt": "low", "add_special_tokens": added}).json()["count"]
        for added in (0 > 1, True)
    ]
    assert counts == [1, 2]


def test_tokenize_and_detokenize_have_the_shapes_of_vllm(client: TestClient, tokenizers: dict[str, Tokenizer]) -> None:
    answer = client.post("/tokenize", json={"prompt": "low slow", "model": "large", "return_token_strs": True}).json()
    ids = tokenizers["large"].encode("low slow")
    strings = [tokenizers["large"].id_to_token(token_id) for token_id in ids]
    assert answer == {"count": len(ids), "max_model_len": None, "tokens": ids, "token_strs": strings}
    assert client.post("/detokenize", json={"tokens": ids, "model": "large"}).json() == {"prompt": "low slow"}
    talk = [{"role": "user", "content": "low <|end|>"}]
    answer = client.post("/tokenize", json={"messages": talk, "model": "large"}).json()
    assert answer["tokens"] == tokenizers["large"].apply_chat_template(talk)
    end = tokenizers["large"].special_tokens["<|end|>"]
    assert answer["tokens"].count(end) == 1  # that of the template, not that of the message


def test_a_conversation_is_shown_as_the_template_writes_it(client: TestClient) -> None:
    asked = {"tokenizer": "large", "messages": [{"role": "user", "content": "low"}]}
    answer = client.post("/playground/chat", json=asked).json()
    assert answer["rendered"] == "user: low<|end|>" and answer["tokens"][-1]["special"]
    assert "chat template" in refused(client, "/playground/chat", {**asked, "tokenizer": "small"})["message"]


def test_merges_end_with_the_ids_of_the_tokenizer(client: TestClient, tokenizers: dict[str, Tokenizer]) -> None:
    text = TEXT.replace("<|end|>", "")
    pieces = client.post("/playground/merges", json={"tokenizer": "large", "text": text}).json()["pieces"]
    assert "".join(piece["text"] for piece in pieces) == text
    assert [token["id"] for piece in pieces for token in piece["steps"][-1]] == tokenizers["large"].encode(text)
    lengths = [[len(step) for step in piece["steps"]] for piece in pieces]
    assert all(first > second for steps in lengths for first, second in itertools.pairwise(steps))
    long = client.post("/playground/merges", json={"tokenizer": "large", "text": "a" * 201}).json()["pieces"]
    assert [piece["steps"] for piece in long] == [[]]


def test_the_merges_of_a_text_are_bounded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_STEPPED", 1000)
    text = " ".join(["low" * 60] * 11)
    pieces = client.post("/playground/merges", json={"tokenizer": "large", "text": text}).json()["pieces"]
    assert pieces[0]["steps"] and not pieces[-1]["steps"]
    assert sum(len(step) for piece in pieces for step in piece["steps"]) <= 1000


def test_a_dropped_tokenizer_is_used_and_the_oldest_forgotten(
    client: TestClient, tokenizers: dict[str, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "MAX_DROPPED", 2)
    names = []
    for count in range(3):
        path = tmp_path / f"{count}.json"
        Tokenizer.train_from_iterator([TEXT], 256 + 5 * count, progress=False).save(path)
        answer = client.post(
            "/playground/tokenizers", params={"name": "../../x.json"}, content=path.read_bytes(), headers=FILE
        )
        assert answer.json()["vocab_size"] == 256 + 5 * count
        names.append(answer.json()["name"])
    assert names[0].startswith("x.json (") and len(set(names)) == 3
    refused(client, "/playground/tokens", {"tokenizer": names[0], "text": "a"}, 404)
    counts = [client.post("/playground/tokens", json={"tokenizer": n, "text": TEXT}).json()["count"] for n in names[1:]]
    assert counts[0] > counts[1]


def test_merges_are_those_of_the_tokenizer_that_was_dropped_last(
    tmp_path: Path, tokenizers: dict[str, Tokenizer]
) -> None:
    page = library.Library(tokenizers)
    contents = []
    for count in range(3):
        path = tmp_path / f"{count}.json"
        Tokenizer.train_from_iterator([TEXT], 256 + 5 * count, progress=False).save(path)
        contents.append(path.read_bytes())
    for content in [contents[0], *contents] * 3:  # one file twice: the first tokenizer's address is free again
        name, _ = page.drop("x.json", content)
        assert len(page.twin(name).ids) == page.get(name).vocab_size
    assert len(page._twins) == 3


def test_dropped_tokenizers_are_bounded_by_their_size(
    tokenizers: dict[str, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = library.Library(tokenizers)
    tokenizers["small"].save(tmp_path / "x.json")
    content = (tmp_path / "x.json").read_bytes()
    monkeypatch.setattr(library, "MAX_DROPPED_BYTES", 2 * len(content) + 10)
    names = [page.drop("x.json", content + b" " * spaces)[0] for spaces in range(3)]
    with pytest.raises(KeyError):
        page.get(names[0])
    assert [page.get(name).vocab_size for name in names[1:]] == [262, 262]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.exe", b"", "expected one of .json"),
        ("", b"{}", "expected one of .json"),
        ("a.json", b"{}", "tokenizer.json"),
        ("a.json", b"\xff\xff", "tokenizer.json"),
        ("a.model", b"not a model", "tokenizer.model"),
        ("a.gguf", b"GGUF", "tokenizer.gguf"),
    ],
)
def test_a_dropped_file_that_is_no_tokenizer_is_refused(
    client: TestClient, name: str, content: bytes, message: str
) -> None:
    answer = client.post("/playground/tokenizers", params={"name": name}, content=content, headers=FILE)
    assert answer.status_code == 400
    error = answer.json()["error"]["message"]
    assert message in error and "/" not in error.replace("/n", ""), error


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/playground/tokens", {"text": "a", "colour": 1}, "colour"),
        ("/playground/tokens", {"text": 5}, "text"),
        ("/playground/tokens", {}, "text"),
        ("/playground/merges", {"text": "a" * 2001}, "text"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"messages": [], "add_special_tokens": True}, "add_special_tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [10**30]}, "tokens"),
        ("/playground/tokens", b"{", None),
        ("/playground/tokens", b"[" * 100_000, None),
        ("/playground/tokens", b"\xff", None),
    ],
)
def test_a_bad_request_names_the_field(client: TestClient, path: str, body: object, param: str | None) -> None:
    assert refused(client, path, body)["param"] == param


def test_an_unknown_tokenizer_and_a_long_body_are_refused(client: TestClient) -> None:
    assert "known: small, large" in refused(client, "/tokenize", {"prompt": "a", "model": "x"}, 404)["message"]
    refused(client, "/playground/tokens", b" " * (app.MAX_BODY + 1), 413)


def test_no_further_thread_is_needed(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    for path in ("/", "/static/main.js", "/playground/info"):
        assert client.get(path).status_code == 200
    assert client.get("/").headers["Content-Type"] == "text/html; charset=utf-8"
    assert "javascript" in client.get("/static/main.js").headers["Content-Type"]
    assert client.head("/static/style.css").status_code == 200
    assert client.post("/tokenize", json={"prompt": "low"}).json()["count"] >= 1


def test_half_a_surrogate_pair_is_answered_or_refused(client: TestClient) -> None:
    body, kind = b'{"text": "a\\ud800b"}', {"Content-Type": "application/json"}
    answer = client.post("/playground/tokens", content=body, headers=kind).json()
    assert bytes.fromhex("".join(token["bytes"] for token in answer["tokens"])).decode() == "a\ufffdb"
    assert refused(client, "/playground/merges", body)["param"] == "text"
    assert "string" in refused(client, "/playground/tokens", b'{"text": "a", "\\ud800": 1}')["message"]


def test_a_body_that_a_page_elsewhere_can_send_is_refused(client: TestClient) -> None:
    for path in ("/playground/tokens", "/playground/tokenizers"):
        answer = client.post(path, content=b'{"text": "a"}', headers={"Content-Type": "text/plain"})
        assert answer.status_code == 415


def test_the_page_is_for_this_machine_and_loads_nothing_from_elsewhere(
    client: TestClient, tokenizers: dict[str, Tokenizer]
) -> None:
    assert client.get("/", headers={"Host": "attacker.example"}).status_code == 400
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'self'" in page.headers["Content-Security-Policy"]
    for file in sorted(app.STATIC.iterdir()):
        assert client.get(f"/static/{file.name}").content == file.read_bytes()
        elsewhere = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in elsewhere and "innerHTML" not in elsewhere
    assert client.get("/static/../app.py").status_code == 404 and client.get("/static/%2e%2e/app.py").status_code == 404
