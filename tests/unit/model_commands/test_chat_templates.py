"""--chat-template on the road from a corpus to a chat: set, saved, learned, obeyed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bpe_llama import Tokenizer
from bpe_llama.chat import NAMED_TEMPLATES, with_chat_template
from bpe_llama.cli import main
from bpe_llama.model import LlamaForCausalLM, lora, training
from bpe_llama.model.cli.loading import load_generator
from bpe_llama.model.cli.serve import adapted
from tests.unit.model_commands.helpers import RUN, SHAPE, TEXT

TALK = [{"role": "user", "content": "Hi <|im_end|>"}, {"role": "assistant", "content": "Ho"}]
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a chat template, a model pretrained with it, and conversations, all by the commands."""
    folder = tmp_path_factory.mktemp("road")
    (folder / "corpus.txt").write_text(TEXT, encoding="utf-8")
    train = ["train-tokenizer", str(folder / "corpus.txt"), "--vocab-size", "290", "--special", "<|endoftext|>"]
    out = ["--out", str(folder / "tokenizer.json"), "--quiet"]
    assert main([*train, "--chat-template", "chatml", *out]) == 0
    encode = ["encode-corpus", str(folder / "corpus.txt"), "-t", str(folder / "tokenizer.json"), "--quiet"]
    assert main([*encode, "--out", str(folder / "shards")]) == 0
    files = [str(folder / "shards"), "--tokenizer", str(folder / "tokenizer.json"), "--out", str(folder / "run")]
    assert main(["pretrain", *files, *SHAPE, *RUN, "--chat-template", "chatml"]) == 0
    talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    (folder / "talk.jsonl").write_text(f"{json.dumps(talk)}\n" * 20, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", list(NAMED_TEMPLATES))
def test_named_templates_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tok = Tokenizer.train_from_iterator([TEXT], vocab_size=280, special_tokens=["<|endoftext|>"], progress=False)
    with pytest.raises(ValueError, match="which this tokenizer lacks"):
        with_chat_template(tok, name)
    tok = with_chat_template(tok, name, add_tokens=True)
    assert tok.end_ids == {tok.special_tokens[token] for token in ("<|endoftext|>", ENDS[name])}
    tok.save(tmp_path)
    loaded = Tokenizer.from_file(tmp_path)
    assert (loaded.chat_template, loaded.end_ids) == (tok.chat_template, tok.end_ids)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for prompt in (True, False):
        text = tok.apply_chat_template(TALK, prompt, tokenize=False)
        assert text == theirs.apply_chat_template(TALK, add_generation_prompt=prompt, tokenize=False)
    assert ENDS[name] in tok.apply_chat_template(TALK, tokenize=False)


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('no') }}"])
def test_a_broken_template_is_refused_before_training(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "broken.jinja").write_text(template, encoding="utf-8")
    monkeypatch.setattr(Tokenizer, "train", lambda *_, **__: pytest.fail("the corpus is read"))
    train = ["train-tokenizer", str(tmp_path / "corpus.txt"), "--vocab-size", "290", "--out", str(tmp_path / "out")]
    assert main([*train, "--chat-template", str(tmp_path / "broken.jinja")]) == 2
    assert "the chat template failed" in capsys.readouterr().err


def test_a_template_of_a_file(tmp_path: Path) -> None:
    tok = Tokenizer.train_from_iterator([TEXT], vocab_size=280, special_tokens=["<|end|>"], progress=False)
    (tmp_path / "my.jinja").write_text("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}", encoding="utf-8")
    chosen = with_chat_template(tok, str(tmp_path / "my.jinja"))
    assert chosen.end_ids == {tok.special_tokens["<|end|>"]} and tok.chat_template is None
    with pytest.warns(UserWarning, match="no special token ends an answer"):
        with_chat_template(tok, "{% for m in messages %}{{ m.role }}{{ m.content }}\n{% endfor %}")
    with pytest.raises(ValueError, match="the chat template failed"):
        with_chat_template(tok, "{% for m in")
    for wrong, hint in (("chatm", "did you mean chatml"), ("none.txt", "expected chatml, llama3 or a file")):
        with pytest.raises(FileNotFoundError, match=hint):
            with_chat_template(tok, wrong)


def test_the_template_goes_with_tokenizer_and_model(road: Path) -> None:
    tok = Tokenizer.from_file(road / "run" / "model")
    assert tok.chat_template == NAMED_TEMPLATES["chatml"].text
    assert [tok.special_tokens[name] for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [287, 288, 289]
    end = tok.special_tokens["<|im_end|>"]
    assert set(LlamaForCausalLM.from_pretrained(road / "run" / "model").end_ids) == {287, end}
    config = json.loads((road / "run" / "model" / "config.json").read_text())
    assert set(config["eos_token_id"]) == {287, end}, "transformers ends there too"


def test_finetuning_learns_to_answer_and_to_stop(road: Path, tmp_path: Path) -> None:
    files = [str(road / "talk.jsonl"), "--model", str(road / "run" / "model"), "--out", str(tmp_path / "tuned")]
    run = ["--steps", "80", "--batch-size", "4", "--accumulate", "1", "--learning-rate", "0.02", "--device", "cpu"]
    assert main(["finetune", *files, *run, "--warmup", "2", "--quiet", "--full", "--chat-template", "chatml"]) == 0
    generator = load_generator(str(tmp_path / "tuned" / "model"), None, "auto", "cpu")
    ids = generator.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert generator.generate(ids, temperature=0.0, max_new_tokens=9) == "Ho"
    assert generator.last is not None and generator.last.finish_reason == "stop"


def test_an_adapter_brings_its_template(
    made: Path, road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base model has no template; the one that was learned is saved with the adapter."""
    (tmp_path / "my.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        encoding="utf-8",
    )
    call = ["finetune", str(road / "talk.jsonl"), "--model", str(made / "run" / "model"), "--out", str(tmp_path / "t")]
    call += ["--steps", "2", "--device", "cpu", "--quiet"]
    assert main([*call, "--chat-template", "chatml"]) == 2
    assert "needs <|im_start|>, <|im_end|>, which the tokenizer lacks; add them with" in capsys.readouterr().err
    assert main([*call, "--chat-template", str(tmp_path / "my.jinja")]) == 0
    assert capsys.readouterr() == ("", "")
    adapter = str(tmp_path / "t" / "adapter")
    generator = load_generator(str(made / "run" / "model"), None, "auto", "cpu", adapter)
    assert generator.tokenizer.chat_template == (tmp_path / "my.jinja").read_text()
    base = load_generator(str(made / "run" / "model"), None, "auto", "cpu")
    assert base.tokenizer.chat_template is None
    assert adapted(base, adapter).tokenizer.chat_template == generator.tokenizer.chat_template, "of serve --adapter"
    assert adapted(base, adapter, "chosen").tokenizer is base.tokenizer, "of serve --adapter --tokenizer"
    grown = ["--full", "--resize-embeddings", "--chat-template", "chatml", "--out", str(tmp_path / "grown")]
    assert main([*call, *grown]) == 0
    generator = load_generator(str(tmp_path / "grown" / "model"), None, "auto", "cpu")
    assert generator.model.config.vocab_size == 282 and generator.end_ids == (279, 281)


def test_bad_usage_is_said_before_work(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "corpus.txt").write_text("text", encoding="utf-8")
    train = ["train-tokenizer", str(tmp_path / "corpus.txt"), "--chat-template"]
    for arguments, message in (
        ([*train, "chatml", "--out", str(tmp_path / "x.tiktoken")], "expected that name"),
        ([*train, "lama3", "--out", str(tmp_path)], "did you mean llama3?"),
        (
            ["pretrain", str(made / "tokens.npy"), "-t", str(made), "-o", str(tmp_path / "r"), "--chat-template", "x"],
            "no such",
        ),
    ):
        assert main(arguments) == 2
        out, error = capsys.readouterr()
        assert message in error and error.count("\n") == 1 and out == ""
    assert not (tmp_path / "run").exists()


def test_training_in_python_leaves_what_the_commands_open(
    made: Path, road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    tok = Tokenizer.from_file(road / "tokenizer.json")
    model = LlamaForCausalLM.from_pretrained(road / "run" / "model", device="cpu")
    config = training.TrainConfig(max_steps=2, sequence_length=32, batch_size=2, device="cpu", warmup_steps=0)
    training.train(model, road / "shards", config, tmp_path / "run", tokenizer=tok, progress=False)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").config.vocab_size == 290
    texts = str(road / "talk.jsonl")
    training.finetune(model, tok, texts, config, tmp_path / "full", progress=False)
    lora.add(model, rank=2, target_modules=["q_proj"])
    training.finetune(model, tok, texts, config, tmp_path / "lora", progress=False)
    adapter = ["--adapter", str(tmp_path / "lora" / "adapter")]
    for folder, more in (("run", []), ("full", []), ("full", adapter)):
        call = ["generate", "The quick", "--model", str(tmp_path / folder / "model"), *more, "-n", "3", "--json"]
        assert main([*call, "--device", "cpu"]) == 0
        assert json.loads(capsys.readouterr().out.strip())["choices"][0]["tokens"] <= 3
    assert Tokenizer.from_file(tmp_path / "lora" / "adapter").chat_template == tok.chat_template
