"""`chat`: the conversation, its commands, and the terminal."""

from __future__ import annotations

import io
import json
import os
import re
import select
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bpe_llama.cli import main
from bpe_llama.model.cli.chat import read_message
from tests.unit.model_commands.helpers import talker_of


@pytest.fixture(scope="module")
def talker(made: Path) -> Path:
    """The trained model with a chat template beside it."""
    return talker_of(made)


def test_a_conversation_accumulates_messages_until_it_is_reset(talker: Path) -> None:
    from bpe_llama.model.cli.chat import Conversation
    from bpe_llama.model.cli.loading import load_generator

    options = {"max_new_tokens": 5, "temperature": 0.9, "eos_id": ()}
    conversation = Conversation(load_generator(talker, None, "auto", "cpu"), "Bark.", options)
    first = "".join(conversation.answer("Hi"))
    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant"]
    assert conversation.messages[-1]["content"] == first
    assert "".join(conversation.retry()) != first
    assert len(conversation.messages) == 3
    stopped = conversation.answer("And then?")
    said = next(stopped)
    stopped.close()  # as Ctrl-C does
    assert conversation.messages[-1] == {"role": "assistant", "content": said}
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Bark."}]
    with pytest.raises(ValueError, match="context"):
        list(conversation.answer("word " * 100))
    assert len(conversation.messages) == 1


def test_an_answer_that_does_not_begin_changes_no_message(talker: Path) -> None:
    from bpe_llama.model.cli.chat import Conversation
    from bpe_llama.model.cli.loading import load_generator

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    conversation = Conversation(load_generator(talker, None, "auto", "cpu"), None, {"max_new_tokens": 3, "eos_id": ()})
    "".join(conversation.answer("Hi"))
    before, options = list(conversation.messages), conversation.options
    for changes, error in (({"max_new_tokens": 0}, ValueError), ({"logits_processor": interrupt}, KeyboardInterrupt)):
        for ask in (conversation.retry, lambda: conversation.answer("And then?")):
            conversation.options = options | changes
            with pytest.raises(error):
                list(ask())
            assert conversation.messages == before
    conversation.options = options | {"eos_id": 5, "allowed_ids": [5]}  # the model ends at once
    assert list(conversation.answer("And then?")) == []
    assert conversation.messages == [
        *before,
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": ""},
    ]
    assert list(conversation.retry()) == [] and len(conversation.messages) == 4


def test_chat_reads_lines_and_commands(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["Hi", "", "/system Be quiet.", "/retry", "/help", "/what", "Hi", "/quit", "never read"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", "--model", str(talker), "-n", "4", "--device", "cpu", "--seed", "0"]) == 0
    said = capsys.readouterr().out
    assert "[there is no answer yet]" in said and "/what is no command" in said
    assert next(lines) == "never read"


def test_chat_says_that_the_context_is_full(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llguidance", reason="a regex needs it")
    lines = iter(["Hi", "And then?", "/reset", "Hi", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    endless = ["-n", "500", "--regex", "[a-z]{500}"]  # so that no answer ends by itself
    assert main(["chat", "--model", str(talker), *endless, "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    full = "[the context of 64 tokens is full; /reset clears the conversation]"
    assert said[1] == said[4] == full
    assert re.fullmatch(
        r"\[the conversation has \d+ tokens, which leave no room in the context of 64; /reset .*", said[2]
    )


def test_a_model_without_a_template_cannot_chat(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--model", str(made / "run" / "model"), "-t", str(made / "tokenizer.json")]) == 2
    assert "has no chat template" in capsys.readouterr().err


def test_a_template_that_does_not_compile_is_refused_before_the_first_question(
    talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(talker, tmp_path / "model"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{% for m in messages %}{{ m }"}))
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail("a question is asked"))
    assert main(["chat", "--model", str(folder), "--device", "cpu"]) == 2
    out, error = capsys.readouterr()
    assert "the chat template failed: " in error and error.count("\n") == 1 and out == ""


def test_a_chat_answers_in_a_grammar(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llguidance", reason="needs bpe_llama[structured]")
    lines = iter(["Hi", "And?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", "--model", str(talker), "--regex", "(yes|no)[.]", "--device", "cpu"]) == 0
    assert all(line in ("yes.", "no.") for line in capsys.readouterr().out.split())


def test_messages_of_several_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["one", '"""two', "three", '  four """', "five\\", "six", '"""seven"""', "  "])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    messages = [read_message(interactive=False) for _ in range(5)]
    assert messages == ["one", "two\nthree\n  four", "five\nsix", "seven", ""]


@pytest.mark.parametrize(("given", "message"), [(["C:\\"], "C:\\"), (['"""one', "two"], "one\ntwo")])
def test_the_end_of_the_input_ends_a_message(given: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(given)))
    assert read_message(interactive=False) == message
    with pytest.raises(EOFError):
        read_message(interactive=False)


def test_a_conversation_is_saved_for_finetune(
    talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = iter(["Hi", "/save talk.json", "/save talk.txt", "/save no/talk.json", "/save", "/stats", "/sav", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", "--model", str(talker), "-n", "4", "--device", "cpu", "--seed", "0", "--system", "Bark."]) == 0
    out = capsys.readouterr().out
    messages = json.loads(Path("talk.json").read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert out.startswith(messages[-1]["content"]) and "talk.json: 3 messages" in out
    assert "expected a name that ends in .json" in out and "[no/talk.json: No such file or directory]" in out
    assert len(list(tmp_path.glob("chat-*.json"))) == 1
    assert "3 messages, " in out and "of 64 tokens; last answer: " in out and "did you mean /save?" in out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_on_a_terminal_it_greets_counts_and_leaves_a_clean_prompt(talker: Path, tmp_path: Path) -> None:
    import pty

    environment = os.environ | {"BPE_LLAMA_CACHE": str(tmp_path), "TERM": "dumb", "COLUMNS": "200"}
    chat = ["chat", "--model", str(talker), "-n", "4", "--device", "cpu", "--seed", "0"]
    command = [sys.executable, "-m", "bpe_llama.cli", *chat]
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, command, environment)
    shown = ""

    def until(wanted: Callable[[str], bool]) -> None:
        nonlocal shown
        deadline = time.monotonic() + 300
        while not wanted(shown):
            assert time.monotonic() < deadline and select.select([terminal], [], [], 300)[0], shown
            try:
                shown += os.read(terminal, 4096).decode("utf-8", "replace")
            except OSError:  # the other end is closed
                assert wanted(shown), shown
                return

    until(lambda text: text.endswith("> "))
    assert "model: " in shown and "parameters, float32 on cpu, context of 64 tokens" in shown and "/help" in shown
    os.write(terminal, b"Hi\n")
    until(lambda text: "prompt tokens" in text and text.endswith("> "))
    assert "new, " in shown and "tokens/s]" in shown
    os.write(terminal, b"\x04")
    until(lambda text: text.endswith("> \r\n"))
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (tmp_path / "chat_history").read_text().splitlines()[-1] == "Hi"
