"""`generate`, `chat` and `convert`: output, options, errors."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama.cli import main
from bpe_llama.model import LlamaForCausalLM, TextGenerator, lora, quantize
from bpe_llama.model.cli.loading import load_generator, load_model, save_with_tokenizer
from bpe_llama.model.quantization.layers import Int4Linear, QuantizedLinear
from tests.small_models import tiny_model
from tests.unit.model_commands.helpers import TEXT, finetune, talker_of


def test_generate_continues_the_prompt_anew_unless_a_seed_is_given(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "The quick", "--model", str(made / "run" / "model"), "-n", "16", "--temperature", "2"]

    def said(*more: str) -> str:
        assert main([*arguments, "--device", "cpu", *more]) == 0
        return capsys.readouterr().out

    first = said("--seed", "1")
    assert first.startswith("The quick") and len(first) > len("The quick\n")
    assert said("--seed", "1") == first != said("--seed", "2")
    assert len({said() for _ in range(3)}) > 1
    assert "[2 of 2, seed " in said("--n", "2") != said("--n", "2")


def test_generate_prints_json_and_logprobs(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["generate", "The quick", "--model", str(made / "run" / "model"), "-n", "4", "--device", "cpu"]
    assert main([*call, "--json", "--n", "2", "--seed", "5", "--logprobs", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    generator = load_generator(str(made / "run" / "model"), None, "auto", "cpu")
    texts = generator.generate("The quick", n=2, seed=5, max_new_tokens=4, top_logprobs=2, logprobs=True)
    assert [choice["text"] for choice in found["choices"]] == texts
    assert found["prompt"] == "The quick" and found["prompt_tokens"] == len(generator.sequences[0].prompt)
    for choice, sequence in zip(found["choices"], generator.sequences, strict=True):
        assert (choice["seed"], choice["finish_reason"], choice["tokens"]) == (sequence.options.seed, "length", 4)
        assert "".join(token["token"] for token in choice["logprobs"]) == choice["text"]
        assert [token["logprob"] for token in choice["logprobs"]] == [round(each, 6) for each in sequence.logprobs]
        assert [[likely["id"] for likely in token["top"]] for token in choice["logprobs"]] == [
            [token_id for token_id, _ in likely] for likely in sequence.top_logprobs
        ]
    assert main([*call, "--seed", "5", "--logprobs", "0"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"The quick{texts[0]}" and len(lines) == 4
    assert float(lines[0].split()[0]) == round(generator.sequences[0].logprobs[0], 3)
    assert main([*call, "--json", "--num-beams", "2"]) == 0
    assert len(json.loads(capsys.readouterr().out)["choices"]) == 1
    assert main([*call, "--logprobs", "-1"]) == 2
    assert "top_logprobs is -1; expected at least 0" in capsys.readouterr().err


def test_generate_prints_special_tokens_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer.train_from_iterator([TEXT], vocab_size=280, special_tokens=["<|user|>"], progress=False)
    save_with_tokenizer(tiny_model(vocab_size=280, eos_token_id=None), tokenizer, tmp_path / "model")
    call = ["generate", "The", "--model", str(tmp_path / "model"), "-n", "2", "--device", "cpu"]
    for flags, expected in [([], ""), (["--no-skip-special-tokens"], "<|user|>" * 2)]:
        assert main([*call, "--logit-bias", "279=100", *flags]) == 0
        assert capsys.readouterr().out == f"The{expected}\n"


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_generate_quantizes_and_does_not_merge_an_adapter(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    tokenizer = Tokenizer.from_file(made / "tokenizer.json")
    shape = {"vocab_size": 280, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    save_with_tokenizer(tiny_model(**shape), tokenizer, tmp_path / "model")
    expected = [quantize.quantize(LlamaForCausalLM.from_pretrained(tmp_path / "model", device="cpu"), kind)]
    adapted = lora.add(copy.deepcopy(expected[0]), rank=2, target_modules=["q_proj", "up_proj"])
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.3)
    lora.save(adapted, tmp_path / "adapter")
    expected.append(adapted)

    arguments = ["generate", "The quick", "--model", str(tmp_path / "model"), "-n", "12", "--seed", "0"]
    arguments += ["--device", "cpu"]
    said = []
    for more in ([], ["--adapter", str(tmp_path / "adapter")]):
        assert main([*arguments, "--quantize", kind, *more]) == 0
        said.append(capsys.readouterr().out)
    assert said == [
        f"The quick{TextGenerator(m, tokenizer).generate('The quick', max_new_tokens=12)}\n" for m in expected
    ]
    assert said[0] != said[1]
    generator = load_generator(tmp_path / "model", None, "auto", "cpu", tmp_path / "adapter", kind)
    assert any(isinstance(module, QuantizedLinear) for module in generator.model.modules())
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


@pytest.fixture(scope="module")
def talker(made: Path) -> Path:
    """The trained model with a chat template beside it."""
    return talker_of(made)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["generate", "a", "--temperature", "-1"], "temperature must be finite and at least 0, got -1"),
        (["generate", "a", "--n", "0"], "--n is 0; expected at least 1"),
        (["generate", "a\udcff"], "the prompt holds '\\udcff' at character 1, a lone surrogate"),
        (["generate", "a", "--adapter", "missing"], "missing"),
        (["generate", "a", "--device", "gpu"], "device 'gpu' is not known to torch"),
        (["chat", "--top-p", "2"], "top_p must be in (0, 1], got 2"),
        (["chat"], "has no chat template"),
    ],
)
def test_mistakes_are_said_before_a_model_is_loaded(
    made: Path, command: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("a model is loaded"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main([*command, "--model", str(made / "run" / "model")]) == 2
    assert message in capsys.readouterr().err


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
    call = ["generate", "The quick", "--model", str(made / "run" / "model"), "-n", "6", "--seed", "0"]
    assert main([*call, "--speed"]) == 0
    printed = capsys.readouterr()
    assert "prefill: " in printed.err and "decode: " in printed.err and "of the roofline at " in printed.err
    assert "tokens/s" not in printed.out


def test_generate_passes_sampling_options_on(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tok = Tokenizer.from_file(made / "tokenizer.json")
    wanted = tok.encode("q")[0]
    call = ["generate", "The quick", "--model", str(made / "run" / "model"), "-n", "4", "--seed", "0"]
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
    assert main(["convert", str(made / "run" / "model"), str(made / "m.gguf")]) == 0
    assert "writing weights" in capsys.readouterr().err
    average = ["--average-with", str(made / "run" / "model"), "--quiet"]
    assert main(["convert", str(made / "run" / "model"), str(made / "mean"), *average]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["convert", str(made / "run" / "model"), str(made / "mean"), *average[:-1]]) == 0
    assert "averaging" in capsys.readouterr().err


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
    call = ["generate", "The quick", "--model", str(opinionated), "--device", "cpu", "--seed", "0"]
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
    call = ["generate", "The quick", "--model", str(folder), "--device", "cpu", "--verbose", "--seed", "0"]
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
    assert main([*call, *flags, "--seed", "0"]) == 0
    expected = generator.generate("The quick", max_new_tokens=6, temperature=2.0, **words)
    assert capsys.readouterr().out == f"The quick{expected}\n"


def test_a_search_that_draws_has_a_seed(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(made / "run" / "model", tmp_path / "model"))
    (folder / "generation_config.json").write_text('{"do_sample": true}')
    call = [
        "generate",
        "The quick",
        "--model",
        str(folder),
        "-n",
        "12",
        "--num-beams",
        "2",
        "--device",
        "cpu",
        "--json",
    ]
    found = []
    for flags in (["--seed", "3"], ["--seed", "3"], [], []):
        assert main([*call, *flags]) == 0
        found.append(json.loads(capsys.readouterr().out)["choices"][0])
    assert found[0] == found[1] and found[0]["seed"] == 3
    assert len({choice["seed"] for choice in found}) == len({choice["text"] for choice in found}) == 3


def test_structured_output_by_flags(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llguidance", reason="needs bpe_llama[structured]")
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"enum": ["été", 5]}', "utf-8")
    grammar.write_text('start: "(" /[a-z]{2}/ ")"', "utf-8")
    flags = {
        ("--json-schema", str(schema)): r'"été"|5',
        ("--json-schema", '{"enum": [7, 8]}'): "7|8",
        ("--regex", "[0-9]{3}"): "[0-9]{3}",
        ("--choice", "red", "--choice", "blue"): "red|blue",
        ("--grammar", str(grammar)): r"\([a-z]{2}\)",
    }
    arguments = ["generate", "The ", "--model", str(made / "run" / "model"), "--device", "cpu", "--verbose"]
    for flag, pattern in flags.items():
        assert main([*arguments, *flag]) == 0
        out, error = capsys.readouterr()
        assert re.fullmatch(f"The ({pattern})\n", out), out
        assert "finish_reason: stop" in error and f"{flag[0][2:].replace('-', '_')}: " in error
    for flag, message in (
        (("--regex", "a("), "regex is not valid"),
        (("--json-schema", str(tmp_path / "none.json")), "none.json"),
        (("--regex", "a", "--choice", "b"), "regex and choice are given"),
        (("--regex", "a", "--num-beams", "2"), "regex is given, but a beam search supports no grammar"),
    ):
        assert main([*arguments, *flag]) == 2
        out, error = capsys.readouterr()
        assert message in error and out == ""


def test_names_and_flags_that_newcomers_give(
    talker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.v1").touch()
    for out in ("out.bin", "out.GGUF", "out.safetensors", "here.v1"):
        assert main(["convert", str(talker), out]) == 2
        assert f"OUT is {out}; expected a name ending in .gguf, or a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["here.v1"]
    assert main(["serve", "--model", "smol"]) == 2
    assert "serve takes the model without a flag: bpe-llama serve smol" in capsys.readouterr().err
    assert main(["generate", "The quick", "--model", str(talker), "--adapter", str(talker), "--device", "cpu"]) == 2
    assert f"{talker}: holds no adapter_config.json, as" in capsys.readouterr().err
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").touch()
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config\.json.*; .*adapter does"):
        lora.load(tiny_model(), tmp_path)


def test_a_full_context_is_said(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["generate", "The quick", "--model", str(made / "run" / "model"), "--device", "cpu", "--seed", "1"]
    context = "the model's context of 64 tokens is full after"
    assert main([*call, "-n", "500", "--ban", "279"]) == 0
    error = capsys.readouterr().err
    assert context in error and error.rstrip().endswith("new tokens; --max-new-tokens is 500")
    assert main([*call, "-n", "5"]) == 0
    assert context not in capsys.readouterr().err


def test_the_groups_of_int4_are_those_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer.train_from_iterator([TEXT], vocab_size=280, progress=False)
    shape = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 280}
    save_with_tokenizer(tiny_model(**shape), tokenizer, tmp_path / "model")
    save_with_tokenizer(tiny_model(**shape | {"intermediate_size": 96}), tokenizer, tmp_path / "narrow")
    for dtype in ("q4_0", "float32"):
        assert main(["convert", str(tmp_path / "model"), str(tmp_path / f"{dtype}.gguf"), "--dtype", dtype]) == 0

    def group_of(name: str, group_size: int | None = None) -> int:
        loaded = load_generator(str(tmp_path / name), None, "auto", "cpu", None, "int4", group_size).model
        layer = loaded.model.layers[0].mlp.up_proj
        assert isinstance(layer, Int4Linear)
        return layer.group_size

    assert [group_of(name) for name in ("model", "narrow", "q4_0.gguf", "float32.gguf")] == [64, 32, 32, 64]
    assert group_of("q4_0.gguf", 64) == 64
    for flags in (["--group-size", "32"], ["--group-size", "48", "--quantize", "int4"]):
        assert main(["generate", "a", "--model", str(tmp_path / "model"), "--device", "cpu", *flags]) == 2
        assert "expected one of 32, 64, 128, 256, together with --quantize int4" in capsys.readouterr().err
