"""The model's commands, run in this process: what they leave behind, what they print, how they refuse."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama.cli import main
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, TextGenerator, lora, quantize, training
from bpe_llama.model.cli import demo
from bpe_llama.model.cli import finetune as finetune_command
from bpe_llama.model.cli import pretrain as pretrain_command
from bpe_llama.model.cli.loading import load_generator, load_model, save_with_tokenizer
from bpe_llama.model.cli.training_options import FIELDS_WITHOUT_FLAG, TRAINING_FLAGS
from bpe_llama.model.training.data.options import DataOptions

TEXT = "The quick brown fox jumps over the lazy dog, and then over another dog. " * 60
SHAPE = ["--hidden-size", "32", "--layers", "1", "--heads", "2", "--context", "64"]
RUN = ["--steps", "4", "--sequence-length", "32", "--batch-size", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer.json, tokens.npy and a trained run."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = Tokenizer.train_from_iterator([TEXT], vocab_size=280, special_tokens=["<|endoftext|>"], progress=False)
    tokenizer.save(folder / "tokenizer.json")
    np.save(folder / "tokens.npy", np.array(tokenizer.encode(TEXT), dtype=np.uint16))
    assert main(pretrain(folder, folder / "run")) == 0
    return folder


def pretrain(folder: Path, out: Path, *more: str) -> list[str]:
    files = [str(folder / "tokens.npy"), "--tokenizer", str(folder / "tokenizer.json"), "--out", str(out)]
    return ["pretrain", *files, *SHAPE, *RUN, *more]


@pytest.mark.parametrize(
    ("command", "without"), [(pretrain_command, {"eval_fraction"}), (finetune_command, {"max_seconds", "compile"})]
)
def test_each_training_option_has_a_flag_or_is_listed_as_having_none(command: Any, without: set[str]) -> None:
    fields = {field.name for field in dataclasses.fields(training.TrainConfig)}
    assert len(fields) == len(TRAINING_FLAGS) + len(FIELDS_WITHOUT_FLAG)
    assert fields == TRAINING_FLAGS.keys() | set(FIELDS_WITHOUT_FLAG)
    parameters = inspect.signature(command.command).parameters.keys()
    assert parameters & fields == TRAINING_FLAGS.keys() - without


def test_each_option_of_the_data_has_a_flag() -> None:
    fields = {field.name for field in dataclasses.fields(training.DataConfig)}
    assert fields == DataOptions.__annotations__.keys()
    assert fields <= inspect.signature(finetune_command.command).parameters.keys()


@pytest.mark.parametrize("command", ["pretrain", "finetune", "generate", "chat", "convert", "demo"])
def test_the_help_of_every_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"bpe-llama {command}" in out and "Example:" in out


def test_pretrain_saves_a_model_with_its_tokenizer(made: Path) -> None:
    folder = made / "run" / "model"
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in folder.iterdir()} == expected
    config = json.loads((folder / "config.json").read_text())
    assert (config["vocab_size"], config["hidden_size"], config["eos_token_id"]) == (280, 32, 279)
    assert LlamaForCausalLM.from_pretrained(folder, device="cpu").config.num_hidden_layers == 1
    assert (made / "run" / "loss.png").stat().st_size > 1000


def test_pretrain_resumes_and_refuses_to_overwrite(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(pretrain(made, made / "run")) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main(pretrain(made, made / "run", "--resume", "--steps", "6")) == 0
    assert "step 6:" in capsys.readouterr().out


def test_generate_continues_the_prompt_the_same_way_each_time(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "The quick", "--model", str(made / "run" / "model"), "-n", "8", "--device", "cpu"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert first.startswith("The quick") and len(first) > len("The quick\n")
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert main([*arguments, "--seed", "1"]) == 0
    assert capsys.readouterr().out != first


def finetune(made: Path, out: Path, *more: str) -> list[str]:
    (made / "notes.txt").write_text(TEXT)
    files = [str(made / "notes.txt"), "--model", str(made / "run" / "model"), "--out", str(out)]
    return [
        "finetune",
        *files,
        "--steps",
        "6",
        "--batch-size",
        "2",
        "--learning-rate",
        "0.02",
        "--device",
        "cpu",
        *more,
    ]


# peft asks transformers by a name that transformers has since changed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_finetune_saves_an_adapter_that_generate_and_peft_load(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    assert main(finetune(made, out, "--rank", "2", "--merge")) == 0
    assert "step 6:" in capsys.readouterr().out
    assert {path.name for path in (out / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(made / "run" / "model")
    said = []
    for model in (
        ["--model", str(made / "run" / "model"), "--adapter", str(out / "adapter")],
        ["-m", str(out / "model")],
    ):
        assert main(["generate", "The quick", *model, "-n", "12", "--device", "cpu"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert main(["generate", "The quick", "--model", str(made / "run" / "model"), "-n", "12", "--device", "cpu"]) == 0
    assert capsys.readouterr().out != said[0]
    peft = pytest.importorskip("peft", reason="whether peft loads the adapter needs peft installed")
    transformers = pytest.importorskip("transformers", reason="whether peft loads the adapter needs transformers")
    transformers.utils.logging.disable_progress_bar()
    base = transformers.LlamaForCausalLM.from_pretrained(made / "run" / "model")
    theirs = peft.PeftModel.from_pretrained(base, out / "adapter").eval()
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        ours = LlamaForCausalLM.from_pretrained(out / "model", device="cpu")(ids).logits
        torch.testing.assert_close(ours, theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_finetune_trains_dora_and_rslora(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, base = tmp_path / "tuned", made / "run" / "model"
    kinds = ["--dora", "--rslora", "--target", "all-linear", "--save-module", "norm", "--dropout", "0.1"]
    assert main(finetune(made, out, *kinds)) == 0
    assert main(finetune(made, out, *kinds, "--resume", "--steps", "7")) == 0
    assert "step 7:" in capsys.readouterr().out
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["use_dora"] and config["use_rslora"] and config["modules_to_save"] == ["norm"]
    peft = pytest.importorskip("peft", reason="whether peft loads the adapter needs peft installed")
    transformers = pytest.importorskip("transformers", reason="whether peft loads the adapter needs transformers")
    transformers.utils.logging.disable_progress_bar()
    theirs = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM.from_pretrained(base), out / "adapter").eval()
    generator = load_generator(base, None, "float32", "cpu", out / "adapter")
    assert lora.names(generator.model) == []  # merged
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(generator.model(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)
    file = out / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(config | {"alora_invocation_tokens": [1]}))
    assert main(["generate", "x", "--model", str(base), "--adapter", str(out / "adapter"), "--device", "cpu"]) == 2
    assert f"{file}: alora_invocation_tokens is [1], which is not supported" in capsys.readouterr().err


def test_finetune_resumes_and_refuses_to_overwrite(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    assert main(finetune(made, out, "--quantize", "int8", "--checkpoint-activations")) == 0
    assert main(finetune(made, out, "--quantize", "int8")) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main(finetune(made, out, "--quantize", "int8", "--resume", "--steps", "8")) == 0
    assert "step 8:" in capsys.readouterr().out


@pytest.mark.parametrize("targets", [["q_proj", "foo"], ["all-linear", "q_proj"], ["q_proj", "roj"]])
def test_finetune_refuses_a_target_that_would_not_be_trained(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], targets: list[str]
) -> None:
    arguments = [word for name in targets for word in ("--target", name)]
    assert main(finetune(made, tmp_path / "tuned", *arguments)) == 2
    wrong = next(name for name in targets if name != "q_proj")
    assert f"--target is '{wrong}'; expected all-linear alone, or some of " in capsys.readouterr().err


def test_errors_are_one_line_before_any_work(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "a"}\n')
    model = made / "run" / "model"
    for arguments, message in (
        (["finetune", str(tmp_path / "a.jsonl"), "-m", str(model), "-o", str(tmp_path / "o")], "['question']"),
        (["generate", "a", "-m", str(model), "--top-p", "0", "--device", "cpu"], "top_p must be in (0, 1], got 0"),
        (["convert", str(model), str(tmp_path / "none" / "a.gguf")], f"{tmp_path / 'none' / 'a.gguf'}: No such file"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and message in said.err


def test_warnings_are_one_line(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run" / "model", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"stop_strings": ["a"]}')
    done = subprocess.run(
        [sys.executable, "-m", "bpe_llama.cli", "convert", tmp_path / "model", tmp_path / "a.gguf"],
        capture_output=True,
        text=True,
        check=True,
    )
    line = "bpe-llama: warning: a GGUF file has no place for these defaults of generation: stop_strings = ['a']\n"
    assert done.stderr.endswith(line)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_generate_quantizes_and_does_not_merge_an_adapter(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    tokenizer = Tokenizer.from_file(made / "tokenizer.json")
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=280, max_position_embeddings=64, initializer_range=0.2, **shape)
    save_with_tokenizer(LlamaForCausalLM(config), tokenizer, tmp_path / "model")
    expected = [quantize.quantize(LlamaForCausalLM.from_pretrained(tmp_path / "model", device="cpu"), kind)]
    adapted = lora.add(copy.deepcopy(expected[0]), rank=2, target_modules=["q_proj", "up_proj"])
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.3)
    lora.save(adapted, tmp_path / "adapter")
    expected.append(adapted)

    arguments = ["generate", "The quick", "--model", str(tmp_path / "model"), "-n", "12", "--device", "cpu"]
    said = []
    for more in ([], ["--adapter", str(tmp_path / "adapter")]):
        assert main([*arguments, "--quantize", kind, *more]) == 0
        said.append(capsys.readouterr().out)
    assert said == [
        f"The quick{TextGenerator(m, tokenizer).generate('The quick', max_new_tokens=12)}\n" for m in expected
    ]
    assert said[0] != said[1]
    generator = load_generator(tmp_path / "model", None, "auto", "cpu", tmp_path / "adapter", kind)
    assert any(isinstance(module, quantize.QuantizedLinear) for module in generator.model.modules())
    assert lora.names(generator.model)


def test_an_adapter_of_a_tied_head_does_not_change_the_embedding(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = LlamaForCausalLM.from_pretrained(made / "run" / "model", device="cpu")
    tied = LlamaForCausalLM(base.config.replace(tie_word_embeddings=True))
    save_with_tokenizer(tied, Tokenizer.from_file(made / "tokenizer.json"), tmp_path / "tied")
    arguments = finetune(made, tmp_path / "tuned", "--model", str(tmp_path / "tied"), "--target", "lm_head")
    assert main([*arguments, "--merge"]) == 2
    assert "--merge would change the embedding, to which lm_head is tied" in capsys.readouterr().err
    assert main(arguments) == 0
    capsys.readouterr()
    generator = load_generator(tmp_path / "tied", None, "float32", "cpu", tmp_path / "tuned" / "adapter")
    assert "the adapter is not merged, which is slower: the weight of lm_head is shared" in capsys.readouterr().err
    assert torch.equal(generator.model.model.embed_tokens.weight, tied.model.embed_tokens.weight)
    ids = torch.arange(3, 15)[None]
    adapted = lora.load(tied, tmp_path / "tuned" / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(generator.model(ids).logits, adapted(ids).logits)
    assert generator.generate("The quick", max_new_tokens=4)


def test_finetune_reads_rows_and_prints_what_is_learned(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"prompt": "The quick", "completion": " brown fox"}] * 8))
    arguments = finetune(made, tmp_path / "tuned", "--format", "prompt-completion", "--show-example")
    arguments[1] = str(rows)
    assert main(arguments) == 0
    assert re.search(r"The quick⟦ brown fox.*⟧", capsys.readouterr().err)
    for more, message in (
        (["--format", "csv"], "format is 'csv'; expected auto, messages, sharegpt, alpaca, prompt-completion, text"),
        (["--train-on", "none"], "train_on is 'none'; expected assistant, last, all"),
        (["--format", "alpaca"], "need a tokenizer with a chat template"),
    ):
        assert main([*arguments, *more, "--out", str(tmp_path / "other")]) == 2
        assert message in capsys.readouterr().err


def test_finetune_of_all_weights_may_stay_in_bfloat16(made: Path, tmp_path: Path) -> None:
    assert main(finetune(made, tmp_path / "tuned", "--full", "--weights-dtype", "bfloat16")) == 0
    stored = json.loads((tmp_path / "tuned" / "model" / "config.json").read_text())
    assert stored["dtype"] == "bfloat16"


def test_finetune_of_all_weights_saves_a_model(made: Path, tmp_path: Path) -> None:
    assert main(finetune(made, tmp_path / "tuned", "--full")) == 0
    assert not (tmp_path / "tuned" / "adapter").exists()
    before, after = (
        LlamaForCausalLM.from_pretrained(folder, device="cpu").state_dict()
        for folder in (made / "run" / "model", tmp_path / "tuned" / "model")
    )
    assert all(not torch.equal(after[name], weight) for name, weight in before.items())
    assert Tokenizer.from_file(tmp_path / "tuned" / "model").vocab_size == 280


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--model", "absent"], "absent"),
        (["generate", "x", "--model", "{run}", "--temperature", "-1"], "temperature"),
        (["generate", "x", "--model", "{run}", "--top-p", "nonsense"], "--top-p"),
        (["generate", "x", "--model", "{run}", "--device", "tpu9"], "tpu9"),
        (["generate", "x", "--model", "{run}", "-n", "0"], "max_new_tokens"),
        (["generate", "", "--model", "{run}"], "empty"),
        (["generate", "x", "--model", "{run}", "--stop", ""], "a stop string is empty"),
        (["generate", "x", "--model", "{run}", "--ban", "9999"], "9999"),
        (["generate", "x" * 999, "--model", "{run}"], "context"),
        (["pretrain", "absent.npy", "--tokenizer", "{tok}", "--out", "o"], "absent.npy"),
        (["pretrain", "{tok}", "--tokenizer", "{tok}", "--out", "o"], "not a .npy file"),
        (["pretrain", "{tokens}", "--tokenizer", "{tok}", "--out", "o", "--heads", "3"], "num_attention_heads"),
        (["pretrain", "{tokens}", "--tokenizer", "{tok}"], "--out"),
        (["demo", "--seconds", "0"], "seconds is 0"),
        (["finetune", "absent.txt", "--model", "{run}", "--out", "o"], "absent.txt"),
        (["finetune", "words.txt", "--model", "absent", "--out", "o"], "absent"),
        (["finetune", "rows.jsonl", "--model", "{run}", "--out", "o"], "rows.jsonl, line 2: "),
        (["finetune", "talks.jsonl", "--model", "{run}", "--out", "o"], "talks.jsonl, line 2: "),
        (["finetune", "rows.csv", "--model", "{run}", "--out", "o"], "rows.csv: rows of .csv are not read"),
        (["finetune", "words.txt", "--model", "{run}"], "--out"),
        (
            ["finetune", "words.txt", "--model", "{run}", "--out", "o", "--full", "--rank", "4"],
            "--rank is for an adapter",
        ),
        (["finetune", "words.txt", "--model", "{run}", "--out", "o", "--full", "--dora"], "--dora is for an adapter"),
        (["finetune", "words.txt", "--model", "{run}", "--out", "o", "--save-module", "layers"], "names model.layers"),
        (["finetune", "words.txt", "--model", "{run}", "--out", "o", "--rank", "0"], "rank is 0"),
        (
            ["finetune", "words.txt", "--model", "{run}", "--out", "o", "--weights-dtype", "bfloat16"],
            "it is for --full",
        ),
        (["finetune", "words.txt", "--model", "{run}", "--out", "o", "--target", "nothing"], "--target is 'nothing'"),
        (["finetune", "words.txt", "--model", "{run}", "--out", "o", "--steps", "0"], "max_steps is 0"),
        (["finetune", "words.txt", "--model", "{run}", "--out", "o", "--quantize", "int2"], "expected int8 or int4"),
        (["finetune", "words.txt", "--model", "{run}", "--out", "o", "--quantize", "int8", "--merge"], "not both"),
        (["generate", "x", "--model", "{run}", "--adapter", "absent"], "absent"),
        (["generate", "x", "--model", "{run}", "--quantize", "float8_e4m3"], "expected int8 or int4"),
        (
            ["generate", "x", "--model", "{run}", "--quantize", "int4"],
            "a divisor of model.layers.0.self_attn.q_proj's 32",
        ),
        (["chat", "--model", "{run}", "--quantize", "int2"], "expected int8 or int4"),
        (["generate", "x", "--model", "{run}", "--seed", "often"], "--seed is 'often'; expected a number, or random"),
        (["generate", "x", "--model", "{run}", "--xtc-probability", "2"], "xtc_probability is 2.0; expected 0 to 1"),
        (["generate", "x", "--model", "{run}", "--mirostat", "3"], "mirostat is 3; expected 0 (off), 1 or 2"),
        (["generate", "x", "--model", "{run}", "--filter-order", "top_k,heat"], "filter_order names 'heat'"),
        (["generate", "x", "--model", "{run}", "--n", "0"], "n is 0; expected at least 1"),
        (
            ["generate", "x", "--model", "{run}", "--num-beams", "2", "--top-p", "0.5"],
            "top_p is 0.5, but a beam search",
        ),
        (["chat", "--model", "{run}", "--penalty-scope", "all"], "penalty_scope"),
    ],
)
def test_bad_usage_of_the_models_commands_is_one_line_and_exit_code_2(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("The quick brown fox. " * 100)
    (tmp_path / "rows.jsonl").write_text('{"text": "The quick"}\nbrown\n')
    (tmp_path / "talks.jsonl").write_text(
        '{"prompt": "The", "completion": "quick"}\n{"prompt": 1, "completion": "x"}\n'
    )
    (tmp_path / "rows.csv").write_text("text\nThe quick brown fox.\n" * 100)
    names = {"run": made / "run" / "model", "tok": made / "tokenizer.json", "tokens": made / "tokens.npy"}
    assert main([argument.format(**names) for argument in arguments]) == 2
    out, error = capsys.readouterr()
    assert message in error and out == ""
    assert error.count("\n") == 1 and "Traceback" not in error


def test_the_demo_trains_and_generates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = demo.corpus_files()[:40]
    monkeypatch.setattr(demo, "corpus_files", lambda: few)
    out = tmp_path / "demo-out"
    for _ in range(2):  # a second run replaces the first
        assert main(["demo", "--seconds", "0.5", "--out", str(out), "--device", "cpu"]) == 0
        said = capsys.readouterr().out
    expected = {"tokenizer.json", "tokenizer_config.json", "tokens.npy", "run", "model", "loss.png", "sample.py.txt"}
    assert {path.name for path in out.iterdir()} == expected
    assert "bytes per token" in said and "def " in said
    tokenizer = Tokenizer.from_file(out / "model")
    assert tokenizer.vocab_size == 4096
    parameters = sum(weight.numel() for weight in LlamaForCausalLM.from_pretrained(out / "model").parameters())
    assert 1_000_000 <= parameters <= 3_000_000
    for line in said[said.index("Next, try:") :].splitlines()[1:2]:
        assert main([word.strip("'") for word in line.replace("class Queue", "class_Queue").split()[1:]]) == 0


def test_the_corpus_of_the_demo_is_this_pythons_library() -> None:
    files = demo.corpus_files()
    assert any(path.name == "argparse.py" for path in files)
    assert not any("site-packages" in path.parts for path in files)
    with pytest.raises(ValueError, match="no Python sources"):
        demo.corpus_files(Path(__file__).parent / "absent")


@pytest.fixture(scope="module")
def talker(made: Path) -> Path:
    """The trained model with a chat template beside it."""
    folder = made / "run" / "model"
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


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


def test_chat_reads_lines_and_commands(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["Hi", "", "/system Be quiet.", "/retry", "/help", "/what", "Hi", "/quit", "never read"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", "--model", str(talker), "-n", "4", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "[there is no answer yet]" in said and "/what is no command" in said
    assert next(lines) == "never read"


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


def test_convert_goes_to_gguf_and_back(talker: Path, tmp_path: Path) -> None:
    assert main(["convert", str(talker), str(tmp_path / "m.gguf"), "--dtype", "float32"]) == 0
    assert main(["convert", str(tmp_path / "m.gguf"), str(tmp_path / "back")]) == 0
    before = LlamaForCausalLM.from_pretrained(talker, device="cpu").state_dict()
    after = LlamaForCausalLM.from_pretrained(tmp_path / "back", device="cpu").state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    tokenizers = [Tokenizer.from_file(folder) for folder in (talker, tmp_path / "back")]
    assert tokenizers[0].encode(TEXT) == tokenizers[1].encode(TEXT)
    assert tokenizers[0].chat_template == tokenizers[1].chat_template


def test_generate_prints_its_speed(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "The quick", "--model", str(made / "run" / "model"), "-n", "6", "--speed"]) == 0
    printed = capsys.readouterr()
    assert "prefill: " in printed.err and "decode: " in printed.err and "of the roofline at " in printed.err
    assert "tokens/s" not in printed.out


def test_generate_passes_sampling_options_on(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tok = Tokenizer.from_file(made / "tokenizer.json")
    wanted = tok.encode("q")[0]
    call = ["generate", "The quick", "--model", str(made / "run" / "model"), "-n", "4"]
    assert main([*call, "--logit-bias", f"{wanted}=1e6", "--typical-p", "0.9", "--preset", "meta"]) == 0
    assert capsys.readouterr().out == "The quickqqqq\n"
    assert main([*call, "--logit-bias", f"{wanted}=1e6", "--ban", str(wanted), "--presence-penalty", "1"]) == 0
    assert "q" not in capsys.readouterr().out.removeprefix("The quick")
    assert main([*call, "--logit-bias", "q=1"]) == 2
    assert "--logit-bias is 'q=1'; expected ID=NUMBER" in capsys.readouterr().err
    assert main([*call, "--preset", "mine"]) == 2
    assert "preset must be" in capsys.readouterr().err


def test_generate_refuses_a_missing_device(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "The", "--model", str(made / "run" / "model"), "--device", "cuda:99"]) == 2
    assert "device 'cuda:99' is not there: torch sees" in capsys.readouterr().err
    assert main(["generate", "", "--model", str(made / "run" / "model")]) == 2
    assert "no beginning-of-text id to start from" in capsys.readouterr().err
    assert main(["generate", "The " * 200, "--model", str(made / "run" / "model")]) == 2
    assert "leaves no room in a context of 64" in capsys.readouterr().err


def test_a_terminal_shows_the_progress_of_loading(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_model(made / "run" / "model", "float32", "cpu")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    loaded = load_model(made / "run" / "model", "float32", "cpu")
    shown = capsys.readouterr().err
    tensors = len(loaded.state_dict()) - int(loaded.config.tie_word_embeddings)
    assert "loading weights" in shown and f"{tensors}/{tensors}" in shown


@pytest.fixture(scope="module")
def opinionated(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model with sampling defaults of its own."""
    folder = tmp_path_factory.mktemp("opinionated") / "model"
    model = LlamaForCausalLM.from_pretrained(made / "run" / "model", device="cpu")
    save_with_tokenizer(model, Tokenizer.from_file(made / "tokenizer.json"), folder)
    said = {"do_sample": True, "temperature": 0.6, "top_p": 0.8, "max_new_tokens": 5, "eos_token_id": 7}
    (folder / "generation_config.json").write_text(json.dumps(said))
    return folder


def test_generate_uses_the_models_defaults_and_prints_them(
    opinionated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["generate", "The quick", "--model", str(opinionated), "--device", "cpu"]
    assert main([*call, "--verbose"]) == 0
    out, err = capsys.readouterr()
    for line in (
        "temperature: 0.6 (generation_config.json)",
        "top_p: 0.8 (generation_config.json)",
        "max_new_tokens: 5 (generation_config.json)",
        "seed: 0",
        "finish_reason: length after 5 ids",
    ):
        assert line in err.splitlines()
    assert "ends: 279 '<|endoftext|>', 7" in err
    assert main([*call, "--temperature", "0.6", "--top-p", "0.8", "-n", "5"]) == 0
    assert capsys.readouterr().out == out
    assert main([*call, "--temperature", "0", "--verbose"]) == 0
    assert "temperature: 0.0" in capsys.readouterr().err.splitlines()


def test_generate_uses_the_models_max_length(
    made: Path, opinionated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(opinionated, tmp_path / "model"))
    prompt = len(Tokenizer.from_file(made / "tokenizer.json").encode("The quick"))
    (folder / "generation_config.json").write_text(json.dumps({"max_length": prompt + 4}))
    call = ["generate", "The quick", "--model", str(folder), "--device", "cpu", "--verbose"]
    assert main(call) == 0
    err = capsys.readouterr().err.splitlines()
    assert f"max_new_tokens: 4 (generation_config.json: max_length {prompt + 4}, less the prompt)" in err
    assert "finish_reason: length after 4 ids" in err
    assert main([*call, "-n", "6"]) == 0
    assert "finish_reason: length after 6 ids" in capsys.readouterr().err.splitlines()
    (folder / "generation_config.json").write_text(json.dumps({"max_length": prompt}))
    assert main(call) == 2
    assert f"max_length of the model's generation_config.json is {prompt}, prompt included" in capsys.readouterr().err


def test_convert_keeps_the_models_defaults(opinionated: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="a GGUF file has no place for these defaults of generation: max_new_tokens"):
        assert main(["convert", str(opinionated), str(tmp_path / "a.gguf")]) == 0
    assert main(["convert", str(tmp_path / "a.gguf"), str(tmp_path / "b")]) == 0
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "b")
    assert set(loaded.end_ids) == {7, 279}
    assert loaded.generation_config.sampling_defaults == {"temperature": 0.6, "top_p": 0.8}
    before, after = (Tokenizer.from_file(path) for path in (opinionated, tmp_path / "b"))
    assert before("The quick") == after("The quick")


def test_generate_has_several_answers_beams_and_random_seeds(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["generate", "The quick", "--model", str(made / "run" / "model"), "-n", "6", "--temperature", "2"]
    singles = []
    for seed in ("3", "4"):
        assert main([*call, "--seed", seed]) == 0
        singles.append(capsys.readouterr().out)
    assert main([*call, "--seed", "3", "--n", "2"]) == 0
    assert capsys.readouterr().out == f"[1 of 2, seed 3]\n{singles[0]}[2 of 2, seed 4]\n{singles[1]}"
    assert main([*call, "--seed", "random"]) == 0
    out, err = capsys.readouterr()
    assert main([*call, "--seed", err.split("seed: ")[1].split()[0]]) == 0
    assert capsys.readouterr().out == out
    generator = load_generator(made / "run" / "model", None, "auto", "cpu")
    assert main([*call[:-2], "--num-beams", "3", "--repetition-penalty", "1.3"]) == 0
    expected = generator.generate("The quick", num_beams=3, max_new_tokens=6, repetition_penalty=1.3)
    assert capsys.readouterr().out == f"The quick{expected}\n"
    words = {"bad_words": ["fox", "dog"], "no_repeat_ngram_size": 3, "dry_multiplier": 0.5, "top_n_sigma": 1.0}
    words |= {"filter_order": ["top_n_sigma", "temperature"], "dry_sequence_breakers": ["."]}
    flags = ["--bad-words", "fox", "--bad-words", "dog", "--no-repeat-ngram-size", "3", "--dry-multiplier", "0.5"]
    flags += ["--top-n-sigma", "1", "--filter-order", "top_n_sigma, temperature", "--dry-sequence-breaker", "."]
    assert main([*call, *flags]) == 0
    expected = generator.generate("The quick", max_new_tokens=6, temperature=2.0, **words)
    assert capsys.readouterr().out == f"The quick{expected}\n"
