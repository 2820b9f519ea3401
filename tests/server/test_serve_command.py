"""`bpe-llama serve` as a program: one line with its URL, adapters and keys, an orderly end."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading

import pytest

from bpe_llama import Tokenizer
from bpe_llama.cli import main
from bpe_llama.model import LlamaForCausalLM, TextGenerator
from bpe_llama.model.adapters import lora
from bpe_llama.model.cli import serve
from bpe_llama.model.server.config import ServerConfig
from tests.server.conftest import make_generator

httpx = pytest.importorskip("httpx", reason="requests are sent with httpx")
KEY = {"Authorization": "Bearer key-of-the-tests"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model, its tokenizer and, below it, an adapter."""
    import torch

    folder = tmp_path_factory.mktemp("models") / "tiny"
    generator = make_generator()
    generator.model.save_pretrained(folder)
    generator.tokenizer.save(folder / "tokenizer.json")
    lora.add(generator.model, rank=2)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in generator.model.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.3)
    lora.save(generator.model, folder / "poet")
    return folder


def test_every_flag_arrives(folder, monkeypatch):
    runs = []
    monkeypatch.setattr("bpe_llama.model.server.running.run", lambda app, *where, announce: runs.append((app, *where)))
    flags = "--host ::1 --port 1234 --model-name m --api-key k --api-key l --cors http://a --cors http://b --slots 3"
    flags += " --max-queue 5 --max-length 32 --prefix-cache-mb 7 --share-prefixes --timeout 0 --grace 2.5"
    assert main(["serve", str(folder), *flags.split(), "--adapter", f"poet={folder / 'poet'}"]) == 0
    ((app, host, port),) = runs
    assert (host, port) == ("::1", 1234) and "/" in {route.path for route in app.routes}
    service, scheduler = app.state.service, app.state.service.scheduler
    config = ServerConfig(host="::1", api_keys=("k", "l"), cors_origins=("http://a", "http://b"), timeout=None)
    assert (service.config, service.grace) == (config, 2.5)
    assert (scheduler.slots, scheduler.max_queue, scheduler.max_length, scheduler.share_prefixes) == (3, 5, 32, True)
    assert [*scheduler.generators] == ["m", "poet"]
    assert {engine.prefixes.blocks.max_bytes for engine in scheduler._thread.engines.values()} == {7 << 20}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to one process is POSIX")
def test_from_start_to_end(folder):
    arguments = [str(folder), "--port", "0", "--adapter", f"poet={folder / 'poet'}", "--slots", "2", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bpe_llama.cli", "serve", *arguments],
        env=os.environ | {"BPE_LLAMA_API_KEY": "key-of-the-tests"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=lambda: [lines.put(line) for line in process.stdout])
        reader.start()
        url = lines.get(timeout=300).strip()
        assert url.startswith("http://127.0.0.1:")
        with httpx.Client(base_url=url, headers=KEY, timeout=120) as client:
            assert httpx.get(f"{url}/v1/models").status_code == 401
            assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny", "poet"]
            body = {"prompt": "the quick", "temperature": 0, "max_tokens": 12}
            texts = [client.post("/v1/completions", json=body | {"model": name}) for name in ("tiny", "poet")]
            model = LlamaForCausalLM.from_pretrained(folder, dtype="float32", device="cpu")
            tokenizer = Tokenizer.from_file(folder)
            own = TextGenerator(model, tokenizer).generate("the quick", temperature=0, max_new_tokens=12)
            lora.load(model, folder / "poet")
            adapted = TextGenerator(model, tokenizer).generate("the quick", temperature=0, max_new_tokens=12)
            assert [text.json()["choices"][0]["text"] for text in texts] == [own, adapted] and own != adapted
            # Ctrl-C lets a running request end, and a body that is still to come is refused.
            late = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=120)
            head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            late.sendall(f"{head}Authorization: {KEY['Authorization']}\r\nContent-Length: 50\r\n\r\n{{".encode())
            long = body | {"max_tokens": 300, "ignore_eos": True, "stream": True}
            with client.stream("POST", "/v1/completions", json=long) as stream:
                events = stream.iter_lines()
                next(events)
                process.send_signal(signal.SIGINT)
                assert "data: [DONE]" in list(events)
            with late:
                assert late.recv(1000).startswith(b"HTTP/1.1 503")
        assert process.wait(120) == 0
        reader.join()
        assert lines.empty() and process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--adapter", "poet"], "--adapter is 'poet'; expected NAME=PATH"),
        (["--adapter", "tiny=x"], "the name 'tiny', which is the model's"),
        (["--port", "70000"], "--port is 70000; expected 0 to 65535"),
        (["--api-key", ""], "an API key is empty"),
        (["--timeout", "-1"], "timeout is -1"),
        (["--cors", "foo"], "the CORS origin is 'foo'; expected one such as 'http://localhost:3000', or '*'"),
        (["--cors", "http://localhost:3000/"], "the CORS origin is 'http://localhost:3000/'"),
        (["--host", "300.1.1.1"], "cannot listen on 300.1.1.1 port 8000"),
        (["--slots", "0"], "--slots"),
    ],
)
def test_bad_usage_is_one_line(folder, capsys, arguments, says):
    assert main(["serve", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_port_in_use_is_named(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(folder), "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err


@pytest.mark.parametrize("started", [0, 1, 2])
def test_no_thread_is_one_line(folder, capsys, limit_threads, started):
    before = set(threading.enumerate())
    limit_threads(started)
    assert main(["serve", str(folder), "--port", "0", "--threads", "1"]) == 2
    assert "no thread can be started; allow more processes" in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert "bpe_llama engine" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_the_missing_extra_is_named(monkeypatch, capsys, folder):
    monkeypatch.setattr(serve, "_NEEDED", ("fastapi", "no_such_package"))
    assert main(["serve", str(folder)]) == 2
    assert "serve needs no_such_package: pip install 'bpe_llama[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("free", "arguments", "says"),
    [
        (50_000, [], "its weights take 0.000157 GB in float32, but 5e-05 GB are free; use --dtype bfloat16"),
        (1_000_000, ["--prefix-cache-mb", "0"], "for 16 slots of 512 tokens and 0 GB of prefix cache take"),
        (4_000_000, ["--adapter", "poet=x", "--prefix-cache-mb", "1"], "512 tokens for each of 2 models"),
        (4_000_000, ["--slots", "1", "--max-length", "64", "--quantize", "int8"], "0.268 GB of prefix cache"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_it_is_read(folder, capsys, monkeypatch, free, arguments, says):
    from bpe_llama.model import pretrained
    from bpe_llama.model.checkpoints import huggingface

    monkeypatch.setattr("bpe_llama.model.server.scheduler.memory.free_memory", lambda device: free)
    monkeypatch.setattr(huggingface, "fill", lambda *_: pytest.fail("weights are read"))
    monkeypatch.setattr(pretrained, "check_memory", lambda *_: pytest.fail("the server's own check has passed"))
    assert main(["serve", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert "the model does not fit" in error and says in error and error.count("\n") == 1


def test_what_is_counted_is_what_is_allocated(folder, monkeypatch):
    """The sizes of the check, by a limit that lets it through by one byte, are those of the running server."""
    import torch

    from bpe_llama.model.quantization import quantize
    from bpe_llama.model.server.scheduler import Scheduler, memory

    model = LlamaForCausalLM.from_pretrained(folder, dtype="float32", device="cpu")
    config = model.config
    sizes = {"slots": 3, "max_length": 64, "prefix_cache_bytes": 1 << 20}
    quantize.quantize(model, "int8")
    scheduler = Scheduler({"tiny": TextGenerator(model, Tokenizer.from_file(folder))}, **sizes)
    weights = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    total = sum(weights.values()) + int(scheduler.stats()["slot_bytes"]) + (1 << 20)
    empty = LlamaForCausalLM(config, device="meta")
    for free, fits in ((total, True), (total - 1, False)):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        if fits:
            memory.check_fits(empty, torch.device("cpu"), quantized="int8", **sizes)
        else:
            with pytest.raises(ValueError, match="does not fit"):
                memory.check_fits(empty, torch.device("cpu"), quantized="int8", **sizes)
