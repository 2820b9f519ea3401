"""Published vocabularies by name: the table, the caches that are searched, and downloads from a loopback server."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import tiktoken.model
import tiktoken_ext.openai_public

from bpe_llama import Tokenizer
from bpe_llama._core import split_pieces
from bpe_llama._loading.published import cache, vocabularies
from bpe_llama._loading.published.model_names import MODELS, PREFIXES
from bpe_llama._loading.published.vocabularies import PUBLISHED, Published
from bpe_llama.cli import main
from bpe_llama.tiktoken import encoding_name_for_model, list_encoding_names


def _content() -> bytes:
    import base64

    tokens = [bytes([byte]) for byte in range(256)] + [b"ab"]
    return b"".join(base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))


CONTENT = _content()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class _Server(BaseHTTPRequestHandler):
    content = CONTENT
    status = 200
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Server]]:
    """Serve the small vocabulary at the URL of the name ``small``."""
    handler = type("Handler", (_Server,), {})
    with HTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        _add(monkeypatch, f"http://127.0.0.1:{listening.server_port}/small.tiktoken")
        yield handler
        listening.shutdown()
        thread.join()


def _add(monkeypatch: pytest.MonkeyPatch, url: str | None) -> Published:
    small = Published("tiktoken/small", SHA256, "cl100k", {"<s>": 300}, url, source="Ask its authors")
    monkeypatch.setitem(vocabularies.PUBLISHED, "small", small)
    return small


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three empty caches."""
    for variable in ("DATA_GYM_CACHE_DIR", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("BPE_LLAMA_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_download_is_kept_in_our_cache(server: type[_Server], caches: Path) -> None:
    tok = Tokenizer.from_name("small")
    assert tok.encode("abc<s>", allowed_special="all") == [256, 99, 300]
    assert _files(caches) == ["ours/tiktoken/small"]
    assert (caches / "ours/tiktoken/small").read_bytes() == CONTENT
    Tokenizer.from_name("small")
    assert server.requests == 1


def test_caches_come_before_a_download(server: type[_Server], caches: Path) -> None:
    key = hashlib.sha1(PUBLISHED["small"].url.encode()).hexdigest()
    places = [
        f"ours/{PUBLISHED['small'].file}",
        f"tiktoken/{key}",
        f"hub/models--org--name/blobs/{SHA256}",
        "hub/models--org--name/snapshots/0123/small",
        "hub/models--org--name/snapshots/0123/original/small",
    ]
    for place in places:
        path = caches / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
        assert cache.vocabulary_file("small", PUBLISHED["small"]) == path
        path.unlink()
    assert server.requests == 0


def test_the_folders_of_other_caches_follow_their_variables(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = _add(monkeypatch, "http://127.0.0.1:9/small.tiktoken")
    key = hashlib.sha1(b"http://127.0.0.1:9/small.tiktoken").hexdigest()
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(caches / "temporary"))
    for variable, folder, place in (
        ("DATA_GYM_CACHE_DIR", "gym", key),
        ("TMPDIR", "temporary", f"data-gym-cache/{key}"),
        ("HUGGINGFACE_HUB_CACHE", "old", f"models--o--n/blobs/{SHA256}"),
        ("HF_HOME", "home", f"hub/models--o--n/blobs/{SHA256}"),
        ("XDG_CACHE_HOME", "xdg", f"huggingface/hub/models--o--n/blobs/{SHA256}"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(caches / folder))
            path = caches / folder / place
            path.parent.mkdir(parents=True)
            path.write_bytes(CONTENT)
            assert cache.vocabulary_file("small", small) == path
            path.unlink()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # tiktoken reads no cache then, and does not look further
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(caches / "gym"))
    (caches / "gym" / key).write_bytes(CONTENT)
    with pytest.raises(FileNotFoundError):
        cache.vocabulary_file("small", small)


def test_a_download_with_another_hash_is_refused(server: type[_Server], caches: Path) -> None:
    server.content = CONTENT + b"\n"
    with pytest.raises(ValueError, match=f"SHA-256 .*, expected {SHA256}; it was not kept"):
        Tokenizer.from_name("small")
    assert _files(caches) == []


def test_a_damaged_file_in_our_cache_is_fetched_again(server: type[_Server], caches: Path) -> None:
    path = caches / "ours/tiktoken/small"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:100])
    assert Tokenizer.from_name("small").vocab_size == 301
    assert path.read_bytes() == CONTENT
    assert _files(caches) == ["ours/tiktoken/small"]


def test_a_damaged_file_of_another_cache_is_left_alone(server: type[_Server], caches: Path) -> None:
    path = caches / "tiktoken" / hashlib.sha1(PUBLISHED["small"].url.encode()).hexdigest()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    assert cache.vocabulary_file("small", PUBLISHED["small"]) == caches / "ours/tiktoken/small"
    assert path.read_bytes() == b"damaged"


@pytest.mark.parametrize("status", [403, 500])
def test_without_an_answer_the_error_says_where_the_file_belongs(
    server: type[_Server], caches: Path, status: int
) -> None:
    server.status = status
    damaged = caches / "tiktoken" / hashlib.sha1(PUBLISHED["small"].url.encode()).hexdigest()
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"damaged")
    with pytest.raises(FileNotFoundError) as caught:
        Tokenizer.from_name("small")
    message = str(caught.value)
    assert f"{damaged} (its SHA-256 is not {SHA256})" in message
    assert str(caches / "hub") in message
    assert f"{PUBLISHED['small'].url} could not be read (HTTP Error {status}" in message
    assert message.endswith(f"Put the file at {caches / 'ours/tiktoken/small'}")
    assert _files(caches) == [str(damaged.relative_to(caches))]


def test_an_answer_that_is_no_http(server: type[_Server], caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "do_GET", lambda handler: handler.wfile.write(b"garbage\r\n\r\n"))
    with pytest.raises(FileNotFoundError, match="could not be read"):
        Tokenizer.from_name("small")
    assert _files(caches) == []


def test_a_vocabulary_that_may_not_be_downloaded(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _add(monkeypatch, None)
    with pytest.raises(FileNotFoundError, match=r"Ask its authors\. Put the file at .*small$"):
        Tokenizer.from_name("small")


def test_a_cache_that_cannot_be_written(server: type[_Server], caches: Path) -> None:
    (caches / "ours").write_text("a file")
    with pytest.raises(OSError, match="ours"):
        Tokenizer.from_name("small")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cl100k", "no vocabulary or model is called 'cl100k'; did you mean 'cl100k_base'"),
        ("gtp-4o", "did you mean 'gpt-4o'"),
        ("LLAMA", "known are gpt2, r50k_base"),
        ("", "known are gpt2"),
    ],
)
def test_an_unknown_name_lists_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_name(name)


def test_the_table_equals_tiktokens(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tiktoken_ext.openai_public
    fetched: list[tuple[str, str]] = []

    def note(url: str, expected_hash: str) -> dict[bytes, int]:
        fetched.append((url, expected_hash))
        return {}

    monkeypatch.setattr(theirs, "load_tiktoken_bpe", note)
    assert list_encoding_names() == list(theirs.ENCODING_CONSTRUCTORS)
    for name, construct in theirs.ENCODING_CONSTRUCTORS.items():
        if name == "gpt2":  # the same vocabulary as r50k_base, from files of another format
            assert PUBLISHED["gpt2"] == PUBLISHED["r50k_base"]
            continue
        published, described = PUBLISHED[name], construct()
        assert fetched.pop() == (published.url, published.sha256)
        assert published.file == f"tiktoken/{hashlib.sha1(published.url.encode()).hexdigest()}"
        assert (published.regex, published.special_tokens) == (described["pat_str"], described["special_tokens"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_regex_is_the_pattern_of_its_name(name: str) -> None:
    published = PUBLISHED[name]
    text = "It's 12345 words.\r\n\n  CamelCase  日本語\t\n"
    assert split_pieces(published.regex, text) == split_pieces(published.pattern, text)
    same = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)}, published.regex)
    assert same.pattern_name == published.pattern


def test_models_have_tiktokens_vocabularies() -> None:
    assert MODELS == tiktoken.model.MODEL_TO_ENCODING
    assert list(PREFIXES.items()) == list(tiktoken.model.MODEL_PREFIX_TO_ENCODING.items())
    for name in ("gpt-4o-2024-05-13", "gpt-4-0314", "ft:gpt-4o:org", "gpt-oss-20b", "ft:davinci-002:x"):
        assert encoding_name_for_model(name) == tiktoken.encoding_name_for_model(name)
    for name in ("gpt-9x", "", "davinci-003"):
        with pytest.raises(KeyError):
            tiktoken.encoding_name_for_model(name)
        with pytest.raises(KeyError, match="no model is called"):
            encoding_name_for_model(name)


def test_a_models_name_is_a_name(server: type[_Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vocabularies.PUBLISHED, "o200k_base", replace(PUBLISHED["small"], special_tokens={"<t>": 400}))
    assert Tokenizer.from_name("gpt-4o").special_tokens == {"<t>": 400}


def test_qwen_encodes_in_normal_form_c(server: type[_Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vocabularies.PUBLISHED, "small", replace(PUBLISHED["small"], normalizes=True))
    tok = Tokenizer.from_name("small")
    assert tok.decode(tok.encode("e\u0301")) == "\u00e9"
    assert tok.encode("ab<s>", allowed_special="all") == [256, 300]
    assert (tok.special_tokens, tok.pattern_name, tok.pipeline) == ({"<s>": 300}, "cl100k", "fast")


def test_commands_take_published_names(
    server: type[_Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, printed in (
        (["encode", "cab", "-t", "small"], "99 256\n"),
        (["decode", "99", "256", "-t", "small"], "cab"),
        (["count", "cab", "-t", "small"], "2\n"),
        (["inspect", "cab", "-t", "small", "--ids"], "61 62"),
        (["compare", "small", "gpt-small", "--text", "text.txt"], "gpt-small"),
    ):
        (tmp_path / "text.txt").write_text("cab", encoding="utf-8")
        monkeypatch.setitem(MODELS, "gpt-small", "small")
        assert main(arguments) == 0
        assert printed in capsys.readouterr().out
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["encode", "cab", "-t", "smal"]) == 2
    assert capsys.readouterr().err.endswith("; did you mean small?\n")
    Tokenizer.train_from_iterator(["cab"], vocab_size=256, progress=False).save(tmp_path / "small")
    assert main(["count", "cab", "-t", "small"]) == 0, "a path that exists comes first"
    assert capsys.readouterr().out == "3\n"


@pytest.mark.parametrize("variable", ["BPE_LLAMA_CACHE", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
def test_caches_under_the_home_folder(variable: str, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if variable.startswith("H"):
        monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HOME", str(caches))
    monkeypatch.setenv(variable, "~/mine")
    place = 0 if variable == "BPE_LLAMA_CACHE" else 2
    assert cache.cache_folders()[place] == caches / "mine" / ("hub" if variable == "HF_HOME" else "")
    monkeypatch.setenv(variable, "$HOME/mine")
    assert variable == "BPE_LLAMA_CACHE" or cache.cache_folders()[2].is_relative_to(caches / "mine")
