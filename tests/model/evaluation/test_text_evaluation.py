"""Evaluation of documents: which tokens are scored, bits per byte, and the bytes of each token."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import data
from bpe_llama import Tokenizer
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, perplexity, quantize
from bpe_llama.model.evaluation.bits_per_byte import token_bytes
from bpe_llama.model.evaluation.scoring import Row, score_rows
from bpe_llama.model.evaluation.text import evaluate_text

DOCUMENTS = [
    "The quick brown fox jumps.\n",
    "été, 日本語 😀",
    "x",
    "",
    "The dog sleeps under the old tree until noon. " * 6,
]
REAL_TEXT = Path(json.__file__).read_text("utf-8") + "".join(DOCUMENTS) + "  two\tspaces\r\n\u00a0e\u0301"


def byte_level(bos: bool) -> Tokenizer:
    tok = Tokenizer.train_from_iterator(DOCUMENTS * 3, 300, special_tokens=["<s>", "</s>"], progress=False)
    begin, end = tok.special_tokens["<s>"], tok.special_tokens["</s>"]
    core = tok.with_ends(begin, end, None, None)
    return Tokenizer(core.with_template(begin if bos else None, end if bos else None))


def model_for(tokenizer: Tokenizer, **changes: Any) -> LlamaForCausalLM:
    values: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size + 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,
    }
    return LlamaForCausalLM(LlamaConfig(**(values | changes)), seed=1).eval()


@pytest.mark.parametrize("bos", [True, False])
@torch.no_grad()
def test_scored_tokens_and_their_bytes(bos: bool) -> None:
    """Against the definition: BOS is context, EOS is left out, without BOS the first token is context."""
    tokenizer = byte_level(bos)
    model = model_for(tokenizer)
    nats, tokens, size = 0.0, 0, 0
    for text in DOCUMENTS:
        ids = tokenizer(text)["input_ids"]
        if bos:
            assert ids[0] == tokenizer.bos_id and ids.pop() == tokenizer.eos_id
        scored = 1
        for begin in range(0, len(ids), 12):
            window = ids[begin : begin + 20]
            logits = model(torch.tensor([window])).logits[0].double().log_softmax(-1)
            for place in range(max(scored, begin + 1), begin + len(window)):
                nats -= logits[place - begin - 1, ids[place]].item()
                tokens += 1
                size += len(tokenizer.id_to_bytes(ids[place]))
            scored = max(scored, begin + len(window))
    found = evaluate_text(model, tokenizer, DOCUMENTS, window=20, stride=12, batch_size=3, progress=False)
    assert (found.tokens, found.bytes, found.documents) == (tokens, size, len(DOCUMENTS))
    assert found.bytes == len("".join(DOCUMENTS).encode()) if bos else found.bytes < len("".join(DOCUMENTS).encode())
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found.to_dict()["tokens_per_byte"] == tokens / size
    # One document without BOS is the perplexity of its ids.
    if not bos:
        one = evaluate_text(model, tokenizer, DOCUMENTS[:1], window=20, progress=False)
        assert one.perplexity == pytest.approx(perplexity(model, tokenizer.encode(DOCUMENTS[0]), window=20), rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 8},
        {"num_local_experts": 4},
        {"sliding_window": 4},
    ],
    ids=["plain", "dynamic", "experts", "window"],
)
def test_a_score_does_not_depend_on_the_batch(changes: dict[str, Any]) -> None:
    tokenizer = byte_level(bos=True)
    model = model_for(tokenizer, **changes)
    random = np.random.default_rng(0)
    rows = [Row(random.integers(0, 300, length), 1 + length // 3) for length in (2, 9, 30, 30, 17, 5)]
    rows.append(Row(np.append(rows[2].ids[:-1], 7), 25))  # shares the forward pass of another row
    alone = [score_rows(model, [row])[0] for row in rows]
    seen: list[int] = []
    together = score_rows(model, rows, 4, seen.append)
    assert [score.nats for score in together] == pytest.approx([score.nats for score in alone], rel=1e-5)
    assert [score.greedy for score in together] == [score.greedy for score in alone]
    assert sum(seen) == sum(len(row.ids) - row.first for row in rows)
    greedy = int(model(torch.from_numpy(rows[1].ids[None, :8])).logits[0, -1].argmax())
    assert score_rows(model, [Row(np.append(rows[1].ids[:8], greedy), 8)])[0].greedy


def test_quantized_models_are_scored_and_bad_requests_named() -> None:
    tokenizer = byte_level(bos=True)
    model = model_for(tokenizer)
    exact = evaluate_text(model, tokenizer, DOCUMENTS, progress=False)
    quantize.quantize(model, "int8")
    assert evaluate_text(model, tokenizer, DOCUMENTS, progress=False).loss == pytest.approx(exact.loss, rel=0.05)
    with pytest.raises(ValueError, match="2 documents, and none with a token to score"):
        evaluate_text(model, byte_level(bos=False), ["", "x"], progress=False)
    with pytest.raises(ValueError, match="window is 33; expected 2 to the model's context of 32"):
        evaluate_text(model, tokenizer, DOCUMENTS, window=33)
    with pytest.raises(ValueError, match="batch_size is 0"):
        evaluate_text(model, tokenizer, DOCUMENTS, batch_size=0)
    with pytest.raises(TypeError, match="batch_size must be an int, got '8'"):
        score_rows(model, [], "8")  # type: ignore[arg-type]
    reports: list[Any] = []
    evaluate_text(model, tokenizer, DOCUMENTS, progress=reports.append)
    assert reports[-1].stage == "score" and reports[-1].done == reports[-1].total == exact.tokens


def sentencepiece_tokenizer(folder: Path, **options: Any) -> Tokenizer:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the models are trained by sentencepiece")
    (folder / "corpus.txt").write_text(REAL_TEXT, "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=500,
        minloglevel=3,
        **{"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False, **options},
    )
    return Tokenizer.from_file(folder / "tokenizer.model")


def sum_of_bytes(tokenizer: Tokenizer, text: str) -> int:
    return int(token_bytes(tokenizer)[tokenizer(text)["input_ids"]].sum())


def test_token_bytes_of_byte_level_vocabularies() -> None:
    assert sum_of_bytes(byte_level(bos=True), REAL_TEXT) == len(REAL_TEXT.encode())
    holes = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)}, special_tokens={"<|end|>": 300})
    sizes = token_bytes(holes)
    assert sizes.dtype == np.int64 and sizes.tolist() == [1] * 256 + [0] * 45


@pytest.mark.parametrize("name", ["cl100k", "llama3", "tekken"])
def test_token_bytes_of_published_vocabularies(name: str, real: Callable[..., Any]) -> None:
    assert sum_of_bytes(Tokenizer.from_file(real(data.vocabulary, name)), REAL_TEXT) == len(REAL_TEXT.encode())


def test_token_bytes_of_sentencepiece(tmp_path: Path) -> None:
    size = len(REAL_TEXT.encode())
    assert sum_of_bytes(sentencepiece_tokenizer(tmp_path, add_dummy_prefix=False), REAL_TEXT) == size
    llama = sentencepiece_tokenizer(tmp_path)  # as LLaMA 2's: a space is put before a text
    assert sum_of_bytes(llama, REAL_TEXT) == size + 1
    assert sum_of_bytes(llama, "\u2603") == 4  # three byte tokens behind the space's
    # Without a BOS the first token is context; the space that it holds is no byte of the text.
    found = evaluate_text(model_for(llama), llama, ["The quick"], progress=False)
    first, *others = llama.encode("The quick")
    assert found.bytes == len("The quick") - (len(llama.id_to_bytes(first)) - 1)
    assert found.tokens == len(others)
    # Unknown characters have no bytes, and normalized text has its own.
    lossy = sentencepiece_tokenizer(tmp_path, byte_fallback=False, character_coverage=0.98)
    assert sum_of_bytes(lossy, "a\u2603") == len(" a")
    folded = sentencepiece_tokenizer(tmp_path, normalization_rule_name="nfkc", add_dummy_prefix=False)
    assert sum_of_bytes(folded, "\ufb01") == len("fi")
