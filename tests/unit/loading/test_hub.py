"""Tokenizers by their name on the Hugging Face Hub: from a cache in its layout, and from a server of its API."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from bpe_llama import Tokenizer
from bpe_llama._hub.names import HubName, parse_name
from bpe_llama._loading.published import vocabularies
from bpe_llama._loading.published.vocabularies import Published
from tests.hub_server import Hub, files_of, serving

OTHERS = {
    "README.md": b"read me",
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(5000),
    "pytorch_model.bin": bytes(5001),
    "model.Q4_0.gguf": b"GGUF" + bytes(2000),
    "original/tokenizer.model": b"another",
    "tokenizer.model": b"another",
    "onnx/tokenizer.json": b"{}",
}
FETCHED = ["chat_template.jinja", "config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def files(tok: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a repository: a tokenizer with a chat template, and what it does not need."""
    folder = tmp_path_factory.mktemp("saved")
    with_template = Tokenizer(tok, chat_template="{{ messages[0].content }}")
    with_template.save(folder)
    return files_of(folder) | OTHERS


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/name", HubName("org/name")),
        ("Qwen/Qwen2.5-0.5B", HubName("Qwen/Qwen2.5-0.5B")),
        ("gpt2", HubName("gpt2")),
        ("gpt2@main", HubName("gpt2", "main")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("org/name@refs/pr/3", HubName("org/name", "refs/pr/3")),
        ("org/name@v1/q4/a.gguf", HubName("org/name", "v1", "q4/a.gguf")),
        ("org/name/a.gguf", HubName("org/name", None, "a.gguf")),
        *(
            (path, None)
            for path in ("", ".", "..", "/org/name", "./org/name", "../name", "~/name", "org/name/", "org//b")
        ),
        *((path, None) for path in ("org/name/file", "tokenizer.json", "org/a.gguf", "a.tiktoken", "org\\name", "a b")),
        *((path, None) for path in ("org/a..b", "org/a--b", "name@", "org/name@v1@v2", Path("org/name"))),
    ],
)
def test_names_and_paths(name: str, expected: HubName | None) -> None:
    assert parse_name(name) == expected


def test_a_tokenizer_fetches_its_files_and_no_weights(hub: Hub, files: dict[str, bytes], tok: Tokenizer) -> None:
    hub.add("org/name", files)
    found = Tokenizer.from_pretrained("org/name")
    assert (found.encode("import os"), found.chat_template) == (tok.encode("import os"), "{{ messages[0].content }}")
    assert hub.fetched() == FETCHED
    Tokenizer.from_pretrained("org/name")
    assert hub.asked == [("GET", "/api/models/org/name")]  # whether the branch moved


def test_a_branch_that_moved_is_fetched_again(hub: Hub, files: dict[str, bytes]) -> None:
    repo = hub.add("org/name", files)
    before = repo.refs["main"]
    Tokenizer.from_pretrained("org/name")
    hub.fetched()
    repo.commit(files | {"chat_template.jinja": b"new"})
    assert Tokenizer.from_pretrained("org/name").chat_template == "new"
    assert hub.fetched() == ["chat_template.jinja"]  # the others have the same content
    assert Tokenizer.from_pretrained(f"org/name@{before}").chat_template == "{{ messages[0].content }}"
    assert hub.fetched() == []


def test_revisions(hub: Hub, files: dict[str, bytes]) -> None:
    repo = hub.add("org/name", files)
    tagged = repo.commit(files | {"chat_template.jinja": b"of v1"}, "v1")
    for name, options in (("org/name@v1", {}), ("org/name", {"revision": "v1"}), ("org/name", {"revision": tagged})):
        assert Tokenizer.from_pretrained(name, **options).chat_template == "of v1"
    assert Tokenizer.from_pretrained("org/name").chat_template == "{{ messages[0].content }}"
    with pytest.raises(FileNotFoundError, match=f"org/name: has no revision 'v2' on {hub.endpoint}"):
        Tokenizer.from_pretrained("org/name", revision="v2")
    with pytest.raises(ValueError, match="names a revision, and revision is 'main'; expected one of them"):
        Tokenizer.from_pretrained("org/name@v1", revision="main")


def test_a_subfolder(hub: Hub, files: dict[str, bytes], tok: Tokenizer, tmp_path: Path) -> None:
    hub.add("org/name", {f"text/{name}": content for name, content in files.items()} | {"tokenizer.json": b"{}"})
    assert Tokenizer.from_pretrained("org/name", subfolder="text").encode("import") == tok.encode("import")
    assert hub.fetched() == [f"text/{name}" for name in FETCHED]
    with pytest.raises(FileNotFoundError, match=r"org/name/image holds no tokenizer\.json"):
        Tokenizer.from_pretrained("org/name", subfolder="image")
    tok.save(tmp_path / "local" / "text")
    assert Tokenizer.from_pretrained(tmp_path / "local", subfolder="text").encode("import") == tok.encode("import")


@pytest.mark.parametrize(
    ("needed", "others"),
    [
        (["special_tokens_map.json", "vocab.json", "merges.txt"], ["a.tiktoken"]),
        (["added_tokens.json", "tokenizer.model"], ["tekken.json", "vocab.json", "merges.txt"]),
        (["tekken.json"], ["vocab.json", "merges.txt"]),
        (["a.tiktoken", "a.tiktoken.json"], ["a.gguf", "merges.txt"]),
        (["a.gguf"], ["config.json"]),
        (["additional_chat_templates/t.jinja", "tokenizer.json"], ["additional_chat_templates/t.txt"]),
    ],
)
def test_one_format_is_fetched(hub: Hub, needed: list[str], others: list[str]) -> None:
    hub.add("org/name", {name: f'"{name}"'.encode() for name in (*needed, *others, "model.safetensors")})
    with contextlib.suppress(ValueError):  # they are stubs
        Tokenizer.from_pretrained("org/name")
    assert hub.fetched() == sorted(needed)


def test_a_path_that_exists_is_never_a_name(
    hub: Hub, files: dict[str, bytes], bytes_only: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", files)
    monkeypatch.chdir(tmp_path)
    bytes_only.save(Path("org/name"))
    assert Tokenizer.from_pretrained("org/name", revision="v1").vocab_size == 256
    with pytest.raises(FileNotFoundError, match=r"^org/nam: no such file or folder; did you mean org/name\?$"):
        Tokenizer.from_pretrained(Path("org/nam"))
    assert hub.asked == []
    with pytest.raises(FileNotFoundError, match=r"^org/nam: no such file or folder here; .*did you mean org/name\?$"):
        Tokenizer.from_pretrained("org/nam")


def test_a_cache_in_the_hubs_layout_is_enough(
    files: dict[str, bytes], tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written here by hand, without the listing that huggingface_hub 2 keeps, as by other versions and programs."""
    repo = tmp_path / "cache" / "models--org--name"
    for name, content in files.items():
        path = repo / "snapshots" / ("1" * 40) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("1" * 40)
    expected = tok.encode("import os")
    assert Tokenizer.from_pretrained("org/name", cache_dir=tmp_path / "cache").encode("import os") == expected
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert Tokenizer.from_pretrained("org/name").encode("import os") == expected
    assert Tokenizer.from_pretrained(f"org/name@{'1' * 40}").encode("import os") == expected
    with pytest.raises(
        FileNotFoundError, match=r"org/name/none holds no .*; only the Hugging Face cache was looked in$"
    ):
        Tokenizer.from_pretrained("org/name", subfolder="none")
    with pytest.raises(FileNotFoundError) as caught:
        Tokenizer.from_pretrained("org/other@v1")
    assert str(caught.value) == (
        f"org/other at revision 'v1': no such file or folder here; the Hugging Face cache {tmp_path / 'cache'} lacks "
        "it; nothing is fetched, as HF_HUB_OFFLINE is set"
    )


def test_local_files_only(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add("org/name", files)
    with pytest.raises(FileNotFoundError, match="lacks it; nothing is fetched, as local_files_only is true"):
        Tokenizer.from_pretrained("org/name", local_files_only=True)
    Tokenizer.from_pretrained("org/name")
    hub.asked.clear()
    Tokenizer.from_pretrained("org/name", local_files_only=True)
    assert hub.asked == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_fails_leaves_what_the_cache_holds(hub: Hub, files: dict[str, bytes], status: int) -> None:
    hub.add("org/name", files)
    Tokenizer.from_pretrained("org/name")
    hub.status = status
    Tokenizer.from_pretrained("org/name")
    with pytest.raises(FileNotFoundError, match=f"{hub.endpoint} could not be read .*{status}"):
        Tokenizer.from_pretrained("org/other")


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError, match=r"http://127\.0\.0\.1:9 could not be read \(ConnectError"):
        Tokenizer.from_pretrained("org/name", cache_dir=tmp_path)


def test_a_download_that_breaks_leaves_nothing_half_written(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the attempts of huggingface_hub
    hub.add("org/name", files)
    hub.cut["tokenizer.json"] = 500
    with pytest.raises(ConnectionError, match=r"cache .* lacks tokenizer\.json, and .* could not be read"):
        Tokenizer.from_pretrained("org/name")
    stored = [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]
    assert not [path for path in stored if path.name == "tokenizer.json" or path.suffix == ".incomplete"]
    with pytest.raises(FileNotFoundError, match=r"lacks tokenizer\.json; nothing is fetched"):
        Tokenizer.from_pretrained("org/name", local_files_only=True)
    hub.cut.clear()
    hub.asked.clear()
    Tokenizer.from_pretrained("org/name")
    assert hub.fetched() == ["tokenizer.json"]


def test_the_vocabulary_is_fetched_last(hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a folder that holds it holds the files beside it, for whatever reads the cache later."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.add("org/name", files)
    hub.cut["tokenizer_config.json"] = 10
    with pytest.raises(ConnectionError, match=r"lacks .*tokenizer_config\.json"):
        Tokenizer.from_pretrained("org/name")
    assert "tokenizer.json" not in hub.fetched()


def test_tokens(hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/private", files, token="secret")
    hub.add("org/gated", files, token="secret", gated=True)
    for name, kind, message in (
        ("org/private", FileNotFoundError, "has no such repository, or a private one, which needs token="),
        ("org/gated", PermissionError, rf"denies access \(HTTP status 40\d\); ask for it at {hub.endpoint}/org/gated"),
    ):
        for token in (None, False, "wrong"):
            with pytest.raises(kind, match=message):
                Tokenizer.from_pretrained(name, token=token)
        assert hub.fetched() == []
        Tokenizer.from_pretrained(name, token="secret")
        hub.asked.clear()
    monkeypatch.setenv("HF_TOKEN", "secret")
    Tokenizer.from_pretrained("org/private")


def test_a_repository_without_a_tokenizer(hub: Hub) -> None:
    hub.add("org/name", {"README.md": b"", "a.Q4_0.gguf": b"", "a.Q8_0.gguf": b""})
    hub.add("org/empty", {"README.md": b""})
    with pytest.raises(
        ValueError, match=r"several \.gguf files, a\.Q4_0\.gguf, a\.Q8_0\.gguf; name one, as in org/name/a"
    ):
        Tokenizer.from_pretrained("org/name")
    with pytest.raises(FileNotFoundError, match=r"org/name: holds no a\.Q5_0\.gguf; did you mean a\.Q"):
        Tokenizer.from_pretrained("org/name/a.Q5_0.gguf")
    with pytest.raises(FileNotFoundError, match=r"org/empty holds no tokenizer\.json.*\.gguf$"):
        Tokenizer.from_pretrained("org/empty")
    assert hub.fetched() == []


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "bpe_llama._hub.repository", raising=False)
    with pytest.raises(
        FileNotFoundError, match=r"org/name: no such file or folder here; .* pip install 'bpe_llama\[hub\]'"
    ):
        Tokenizer.from_pretrained("org/name")


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'revison'; did you mean 'revision'"):
        Tokenizer.from_pretrained("org/name", revison="v1")


def test_a_published_vocabulary_of_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"".join(base64.b64encode(bytes([byte])) + f" {byte}\n".encode() for byte in range(256))
    place = ("org/name", "main", "original/tokenizer.model")
    sha256 = hashlib.sha256(content).hexdigest()
    small = Published("small/tokenizer.model", sha256, "cl100k", {}, hub=place, source="Ask")
    monkeypatch.setitem(vocabularies.PUBLISHED, "small", small)
    for variable in ("BPE_LLAMA_CACHE", "TIKTOKEN_CACHE_DIR", "HF_HUB_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    with pytest.raises(FileNotFoundError, match=rf"\nAsk\. org/name: {hub.endpoint} has no such repository"):
        Tokenizer.from_name("small")
    repo = hub.add("org/name", {"original/tokenizer.model": content, "original/consolidated.00.pth": bytes(2000)})
    assert Tokenizer.from_name("small").vocab_size == 256
    assert hub.fetched() == ["original/tokenizer.model"]
    assert not (tmp_path / "BPE_LLAMA_CACHE").exists()
    repo.commit({"original/tokenizer.model": content + b"\n"})
    with pytest.raises(ValueError, match=f"its content has the SHA-256 .*, expected {sha256}"):
        Tokenizer.from_name("small")


def test_environment_variables(files: dict[str, bytes], tok: Tokenizer, tmp_path: Path) -> None:
    """A process of its own, since huggingface_hub reads the variables when it is imported."""
    names = ["HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "TRANSFORMERS_OFFLINE"]
    clean = {name: value for name, value in os.environ.items() if name not in names}
    expected = " ".join(map(str, tok.encode("import os")))

    def encode(**variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bpe_llama.cli", "encode", "import os", "--tokenizer", "org/name"]
        return subprocess.run(command, env=clean | variables, capture_output=True, text=True, cwd=tmp_path, timeout=300)

    home = {"HF_HOME": str(tmp_path / "home")}
    with serving() as hub:
        hub.add("org/name", files, token="secret")
        done = encode(HF_ENDPOINT=hub.endpoint, HF_TOKEN="secret", **home)
        assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr
        assert hub.fetched() == FETCHED
        assert (tmp_path / "home" / "hub" / "models--org--name").is_dir()
        done = encode(HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1", **home)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, expected, "")
        done = encode(HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path / "other"), **home)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"bpe-llama: org/name: no such file or folder here; the Hugging Face cache {tmp_path / 'other'} lacks it; "
            "nothing is fetched, as HF_HUB_OFFLINE is set\n"
        )
        assert hub.asked == []
