"""`--resize-embeddings`, `--adapter` of convert, `--average-with`: changed models from the terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama.cli import main
from bpe_llama.model import LlamaForCausalLM, TextGenerator
from tests.unit.model_commands.helpers import RUN, TEXT, finetune, pretrain

MORE = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 60


@pytest.fixture(scope="module")
def grown(made: Path) -> Path:
    """A tokenizer of more German words and of a chat token, and a file of its ids, beside the others."""
    base = Tokenizer.from_file(made / "run" / "model")
    tokenizer = Tokenizer.train_from_iterator([MORE], 300, base=base, special_tokens=["<|user|>"], progress=False)
    (made / "grown").mkdir()
    tokenizer.save(made / "grown" / "tokenizer.json")
    np.save(made / "grown" / "tokens.npy", np.array(tokenizer.encode(MORE), dtype=np.uint16))
    return made / "grown"


def test_pretrain_goes_on_with_more_tokens(
    made: Path, grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pretrain", str(grown / "tokens.npy"), "--tokenizer", str(grown), "--out", str(tmp_path), *RUN]
    arguments += ["--start-from", str(made / "run" / "model")]
    assert main(arguments) == 2
    assert "300 ids, more than the model's 280" in (said := capsys.readouterr().err) and "--resize-embeddings" in said
    assert main([*arguments, "--resize-embeddings"]) == 0
    assert "embedding: 280 rows, now 300; 20 new tokens" in capsys.readouterr().err
    assert main([*arguments, "--resize-embeddings", "--resume", "--steps", "6"]) == 0
    model = LlamaForCausalLM.from_pretrained(tmp_path / "model", device="cpu")
    assert model.config.vocab_size == Tokenizer.from_file(tmp_path / "model").vocab_size == 300


def test_finetune_learns_new_tokens(made: Path, grown: Path, tmp_path: Path) -> None:
    arguments = [*finetune(made, tmp_path / "tuned", "--full", "--resize-embeddings"), "--tokenizer", str(grown)]
    (made / "notes.txt").write_text(MORE)
    assert main(arguments) == 0
    before = LlamaForCausalLM.from_pretrained(made / "run" / "model", device="cpu")
    after = LlamaForCausalLM.from_pretrained(tmp_path / "tuned" / "model", device="cpu")
    assert (before.config.vocab_size, after.config.vocab_size) == (280, 300)
    rows = after.model.embed_tokens.weight
    assert len(rows[280:].unique(dim=0)) == 20 and not torch.equal(rows[:280], before.model.embed_tokens.weight)


def test_convert_writes_a_grown_model_that_transformers_and_gguf_hold(
    made: Path, grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = made / "run" / "model", tmp_path / "out"
    more = ["--tokenizer", str(grown), "--resize-embeddings"]
    assert main(["convert", str(source), str(out), *more]) == 0
    assert main(["convert", str(source), str(tmp_path / "out.gguf"), "--dtype", "float32", *more]) == 0
    ours, old = (LlamaForCausalLM.from_pretrained(path, device="cpu") for path in (out, source))
    old_tokenizer, tokenizer = Tokenizer.from_file(source), Tokenizer.from_file(out)
    for token_id in range(280, 300):  # the mean of what each token is made of
        pieces = old_tokenizer.encode_bytes(tokenizer.id_to_bytes(token_id))
        for ours_, old_ in zip(
            (ours.model.embed_tokens, ours.lm_head), (old.model.embed_tokens, old.lm_head), strict=True
        ):
            torch.testing.assert_close(ours_.weight[token_id], old_.weight[pieces].mean(0))
    ids = torch.tensor([[5, 299, 280, 7]])
    gguf = LlamaForCausalLM.from_pretrained(tmp_path / "out.gguf", device="cpu")
    assert torch.equal(gguf(ids).logits, ours(ids).logits)
    read = Tokenizer.from_file(tmp_path / "out.gguf")
    assert read.encode("Boxkämpfer<|user|>", allowed_special="all") == tokenizer.encode(
        "Boxkämpfer<|user|>", allowed_special="all"
    )
    assert TextGenerator(gguf, read).generate("Viktor", max_new_tokens=4, temperature=0.0) == TextGenerator(
        ours, tokenizer
    ).generate("Viktor", max_new_tokens=4, temperature=0.0)
    transformers = pytest.importorskip("transformers", reason="whether transformers loads it needs transformers")
    transformers.utils.logging.disable_progress_bar()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, atol=1e-4, rtol=0)
    assert transformers.AutoTokenizer.from_pretrained(out).encode("Boxkämpfer<|user|>") == tokenizer.encode(
        "Boxkämpfer<|user|>", allowed_special="all"
    )
    # An adapter on the grown model, with the new rows saved beside it.
    tuned = finetune(made, tmp_path / "tuned", "--save-module", "embed_tokens", "--save-module", "lm_head")
    tuned[tuned.index("--model") + 1] = str(out)
    assert main(tuned) == 0
    assert (
        main(["generate", "Viktor", "-m", str(out), "--adapter", str(tmp_path / "tuned" / "adapter"), "-n", "2"]) == 0
    )


def test_convert_merges_an_adapter_as_finetune_does(made: Path, tmp_path: Path) -> None:
    source, adapter = made / "run" / "model", tmp_path / "tuned" / "adapter"
    assert main(finetune(made, tmp_path / "tuned", "--merge")) == 0
    assert main(["convert", str(source), str(tmp_path / "merged"), "--adapter", str(adapter)]) == 0
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged", device="cpu").state_dict()
    expected = LlamaForCausalLM.from_pretrained(tmp_path / "tuned" / "model", device="cpu").state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in merged.items())


def test_convert_averages_checkpoints(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, other = made / "run" / "model", tmp_path / "tuned" / "model"
    assert main(finetune(made, tmp_path / "tuned", "--full")) == 0
    capsys.readouterr()
    average = ["convert", str(first), str(tmp_path / "mean"), "--average-with", str(other)]
    assert main([*average, "--weight", "1", "--weight", "3"]) == 0
    one, two, mean = (
        LlamaForCausalLM.from_pretrained(path, device="cpu") for path in (first, other, tmp_path / "mean")
    )
    for name, weight in mean.state_dict().items():
        expected = np.average([model.state_dict()[name].double() for model in (one, two)], 0, [1, 3])
        assert np.array_equal(weight.numpy(), expected.astype(np.float32)), name
    assert Tokenizer.from_file(tmp_path / "mean").encode(TEXT) == Tokenizer.from_file(first).encode(TEXT)
    assert main(["generate", "The", "-m", str(tmp_path / "mean"), "-n", "2", "--device", "cpu"]) == 0
    for more, message in (
        (["--weight", "1"], "1 weights for 2 checkpoints; expected one for each"),
        (["--weight", "1", "--weight", "0"], f"{other}: its weight is 0.0; expected a finite number above 0"),
        (["--average-with", str(tmp_path / "none")], str(tmp_path / "none")),
    ):
        capsys.readouterr()
        assert main([*average, *more]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and message in said
    assert main(["convert", str(first), str(tmp_path / "mean"), "--weight", "1"]) == 2
    assert "--weight is for --average-with" in capsys.readouterr().err


def test_checkpoints_of_one_run_are_averaged(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(pretrain(made, run, "--save-every", "1", "--save-total-limit", "2")) == 0
    older, newest = sorted(run.glob("step-*"))
    arguments = ["convert", str(older), str(tmp_path / "mean"), "--average-with", str(newest)]
    assert main([*arguments, "--tokenizer", str(run / "model")]) == 0
    one, two, mean = (LlamaForCausalLM.from_pretrained(f, device="cpu") for f in (older, newest, tmp_path / "mean"))
    for name, weight in mean.state_dict().items():
        first, second = one.state_dict()[name], two.state_dict()[name]
        assert torch.equal(weight, ((first.double() + second.double()) / 2).float()), name
        assert not torch.equal(first, second)


def test_what_cannot_be_resized_is_one_line(
    made: Path, grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "tokenizer.json"
    Tokenizer.train_from_iterator([TEXT.upper()], vocab_size=290, progress=False).save(foreign)
    model, out, tokens = str(made / "run" / "model"), str(tmp_path / "out"), str(grown / "tokens.npy")
    for arguments, message in (
        (["convert", model, out, "-t", str(foreign), "--resize-embeddings"], "in the old tokenizer and"),
        (["convert", model, out + ".gguf", "-t", str(grown)], "300 ids, more than the model's 280"),
        (["pretrain", tokens, "-t", str(grown), "-o", out, "--resize-embeddings"], "the model of --start-from"),
        ([*finetune(made, tmp_path / "out"), "--resize-embeddings"], "--resize-embeddings is for --full"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and message in said
