"""`bpe-llama demo`: trains a tokenizer and a small LLaMA on this machine's Python library, and generates Python."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from bpe_llama._progress import is_quiet, note
from bpe_llama.model import training
from bpe_llama.model.cli.loading import save_with_tokenizer
from bpe_llama.model.cli.options.common import EXIT_INTERRUPTED, DeviceOption
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.device import resolve_device
from bpe_llama.model.evaluation.bits_per_byte import token_bytes
from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.tokenizer import Tokenizer

EXAMPLE = "Example: bpe-llama demo --seconds 60 --out demo-out"
VOCAB_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"
PROMPT = "def "
# Tests, character tables and installed packages are poor examples of Python.
_EXCLUDED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
    "lib2to3",
}


def command(
    seconds: Annotated[float, typer.Option(help="Training time of the model.")] = 120.0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files of the demo.")] = Path("demo-out"),
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="Random seed of weights, data order and sampling.")] = 0,
) -> int:
    """Train a tokenizer and a small LLaMA on this machine's Python library, then generate Python."""
    return EXIT_INTERRUPTED if run_demo(out, seconds=seconds, device=device, seed=seed).interrupted else 0


def corpus_files(root: Path | None = None) -> list[Path]:
    """Return the Python sources of the standard library, sorted, without its tests and tables.

    Args:
        root: The library's folder; by default this interpreter's.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    files = [path for path in root.rglob("*.py") if not _EXCLUDED_FOLDERS & set(path.relative_to(root).parts[:-1])]
    files = sorted(path for path in files if path.stat().st_size > 0)
    if not files:
        raise ValueError(f"{root}: no Python sources of the standard library here; the demo trains on them")
    return files


def run_demo(out: Path, *, seconds: float = 120.0, device: str = "auto", seed: int = 0) -> training.TrainResult:
    """Run the demo with a report on standard output, and return the result of training.

    Args:
        out: Folder for tokenizer, tokens, checkpoint, model, `loss.png` and `sample.py.txt`. A previous run's training
            is replaced.
        seconds: Training time.
        device: `"auto"`: CUDA if available.
        seed: Random seed of weights, data order and sampling.
    """
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds}, expected a positive number")
    resolve_device(device)
    out.mkdir(parents=True, exist_ok=True)
    files = corpus_files()
    tokenizer = _train_tokenizer(files, out / "tokenizer.json")
    tokens = _encode_corpus(files, tokenizer, out / "tokens.npy")
    model, result = _train(tokens, tokenizer, out, seconds=seconds, device=device, seed=seed)
    if result.interrupted:
        _say(f"Stopped at step {result.step:,}; the checkpoint is {result.checkpoint}.")
        return result
    folder = out / "model"
    save_with_tokenizer(model, tokenizer, folder)
    _sample(model, tokenizer, out / "sample.py.txt", seed)
    _say_next(out)
    return result


def _train_tokenizer(files: list[Path], path: Path) -> Tokenizer:
    raw_bytes = sum(file.stat().st_size for file in files)
    _say(f"1. A vocabulary of {VOCAB_SIZE:,} tokens from {len(files):,} files of Python's library, {_mb(raw_bytes)}")
    began = time.perf_counter()
    tokenizer = Tokenizer.train([str(file) for file in files], vocab_size=VOCAB_SIZE, special_tokens=[END_OF_TEXT])
    tokenizer.save(path)
    words = [token for token in tokenizer.mergeable_ranks if token.strip().isalpha()]
    longest = sorted(words, key=lambda token: (-len(token), token))[:5]
    _say(f"   {path} in {time.perf_counter() - began:.1f} s; its longest tokens: {', '.join(map(_shown, longest))}")
    return tokenizer


def _encode_corpus(files: list[Path], tokenizer: Tokenizer, path: Path) -> Path:
    raw_bytes = sum(file.stat().st_size for file in files)
    began = time.perf_counter()
    tokenizer.encode_files([str(file) for file in files], out=str(path), eos=True)
    count = len(training.open_tokens(path))
    taken = time.perf_counter() - began
    _say(f"2. The text as tokens: {count:,} for {raw_bytes:,} bytes, in {taken:.1f} s ({path})")
    per_token = raw_bytes / count
    _say(f"   {per_token:.2f} bytes per token: {per_token:.1f} times fewer tokens than bytes")
    return path


def _train(
    tokens: Path, tokenizer: Tokenizer, out: Path, *, seconds: float, device: str, seed: int
) -> tuple[LlamaForCausalLM, training.TrainResult]:
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_id,
    )
    model = training.start_as_identity(LlamaForCausalLM(config, seed=seed))
    on_cuda = resolve_device(device).type == "cuda"
    settings = training.TrainConfig(
        max_steps=1_000_000,
        max_seconds=seconds,
        sequence_length=256 if on_cuda else 128,
        batch_size=64 if on_cuda else 4,
        learning_rate=3e-3,
        min_learning_rate_ratio=0.02,
        warmup_steps=40,
        eval_windows=128,
        device=device,
        seed=seed,
    )
    parameters = sum(weight.numel() for weight in model.parameters())
    where = "CUDA" if on_cuda else _plural(torch.get_num_threads(), "CPU thread")
    _say(f"3. A LLaMA of {parameters:,} parameters, trained for {seconds:.0f} s on {where}")
    for old in (out / "run").glob("step-*"):
        shutil.rmtree(old)
    result = training.train(model, tokens, settings, out / "run", token_bytes=token_bytes(tokenizer))
    if (out / "run" / "loss.png").exists():  # a run that ends before its first metrics draws none
        (out / "run" / "loss.png").replace(out / "loss.png")
    if not result.interrupted:
        _say(
            f"   {result.tokens:,} tokens in {result.step:,} steps: loss {result.loss:.2f}, "
            f"held-out loss {result.eval_loss:.2f}, {_held_out_bits(out):.2f} bits per byte ({out / 'loss.png'})"
        )
    return model, result


def _held_out_bits(out: Path) -> float:
    lines = training.read_metrics(out / "run" / "metrics.jsonl")
    return [line["eval_bits_per_byte"] for line in lines if "eval_bits_per_byte" in line][-1]


def _sample(model: LlamaForCausalLM, tokenizer: Tokenizer, path: Path, seed: int) -> None:
    _say("4. A sample:\n")
    parts = [PROMPT]
    if not is_quiet():
        sys.stdout.write(PROMPT)
    generator = TextGenerator(model, tokenizer)
    for piece in generator.stream(PROMPT, max_new_tokens=250, temperature=0.7, top_p=0.9, seed=seed, eos_id=()):
        parts.append(piece)
        if not is_quiet():
            sys.stdout.write(piece)
            sys.stdout.flush()
    path.write_text("".join(parts), encoding="utf-8")
    _say("\n")


def _say_next(out: Path) -> None:
    # The path of this program: the PATH may lack the scripts of a virtual environment that is not active.
    program = sys.argv[0] if Path(sys.argv[0]).name == "bpe-llama" else "bpe-llama"
    _say(
        f"Everything is in {out}. Next, try:\n"
        f"  {program} generate 'class Queue' --model {out / 'model'}\n"
        f"  {program} count --file README.md --tokenizer {out / 'tokenizer.json'}\n"
        f"  {program} inspect 'import os' --tokenizer {out / 'tokenizer.json'}\n"
        f"  {program} pretrain {out / 'tokens.npy'} --tokenizer {out / 'tokenizer.json'} --steps 2000 --out longer-run"
    )


def _say(text: str) -> None:
    note(text, on_stdout=True)


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _shown(token: bytes) -> str:
    return repr(token.decode("utf-8", "replace"))
