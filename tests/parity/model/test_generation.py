"""Generation's defaults and options against transformers, run live on the same random weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama.model import LlamaForCausalLM, TextGenerator
from bpe_llama.model.generation.sampler_dispatch import processed_scores
from bpe_llama.model.generation_config import _NEUTRAL, _OPTIONS, _WITHOUT_EFFECT
from bpe_llama.model.sampling.params import GenerationOptions
from tests.small_models import tiny_model

transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers installed")
pytestmark = pytest.mark.usefixtures("one_thread")
process = pytest.importorskip("transformers.generation.logits_process")

V = 61


def folder_with(path: Path, generation: dict[str, Any] | None, pad_token_id: int | None = None) -> Path:
    shape = {"vocab_size": V, "num_key_value_heads": 2, "max_position_embeddings": 96, "initializer_range": 0.15}
    tiny_model(seed=3, **shape, eos_token_id=2, pad_token_id=pad_token_id).save_pretrained(path)
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def both(path: Path) -> tuple[LlamaForCausalLM, Any]:
    theirs = transformers.LlamaForCausalLM.from_pretrained(path, dtype="float32").eval()
    return LlamaForCausalLM.from_pretrained(path, device="cpu"), theirs


def prompts(rows: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, V, (rows, 9), generator=torch.Generator().manual_seed(seed))


GREEDY: list[dict[str, Any]] = [
    {"do_sample": False, "eos_token_id": [2, 9, 17, 30]},
    {"do_sample": False, "eos_token_id": [2, 5], "repetition_penalty": 1.4, "max_new_tokens": 30},
    {"do_sample": False, "eos_token_id": 2, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_new_tokens": 12},
    {"do_sample": False, "eos_token_id": 2, "no_repeat_ngram_size": 2, "max_new_tokens": 30},
    {"do_sample": False, "eos_token_id": 2, "bad_words_ids": [[7], [9, 12], [2]], "max_new_tokens": 30},
    {"do_sample": False, "eos_token_id": [2, 9, 17, 30], "min_new_tokens": 8, "max_new_tokens": 20},
    {"do_sample": False, "eos_token_id": 2, "suppress_tokens": [4, 40, 41], "max_new_tokens": 30},
]


@pytest.mark.parametrize("generation", GREEDY, ids=lambda generation: "-".join(list(generation)[2:]) or "ends")
def test_the_generation_config_gives_the_defaults(tmp_path: Path, generation: dict[str, Any]) -> None:
    ours, theirs = both(folder_with(tmp_path, generation))
    for row in prompts():
        limit = {} if "max_new_tokens" in generation else {"max_new_tokens": 24}
        expected = theirs.generate(row[None], pad_token_id=0, **limit)
        assert ours.generate(row[None], **limit).tolist() == expected.tolist()
    ours.save_pretrained(tmp_path / "again")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "again")
    assert again.generation_config == ours.generation_config
    kept = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert kept.items() >= generation.items()
    read = transformers.GenerationConfig.from_pretrained(tmp_path / "again")
    assert all(getattr(read, name) == value for name, value in generation.items())


def test_text_is_that_of_transformers_pipeline(tmp_path: Path) -> None:
    special = [f"<|{number}|>" for number in range(V - 1)]
    tokenizer = Tokenizer.train_from_iterator(
        ["the quick brown fox jumps"] * 9, vocab_size=270 + len(special), special_tokens=special, progress=False
    )
    tiny_model(seed=3, vocab_size=tokenizer.vocab_size, initializer_range=0.3, eos_token_id=None).save_pretrained(
        tmp_path
    )
    tokenizer.save(tmp_path)
    theirs = transformers.pipeline("text-generation", str(tmp_path), device="cpu")
    ours = TextGenerator(LlamaForCausalLM.from_pretrained(tmp_path, device="cpu"), tokenizer)
    drawn = set()
    for prompt in ("the", "the quick", "brown fox jumps", "fox"):
        (found,) = theirs(prompt, max_new_tokens=40, do_sample=False, return_full_text=False)
        assert ours.generate(prompt, max_new_tokens=40, temperature=0) == found["generated_text"]
        drawn.update(ours.last.new_ids)
    assert drawn & set(tokenizer.special_tokens.values()) and drawn - set(tokenizer.special_tokens.values())


def test_every_field_of_transformers_is_obeyed_named_or_known_not_to_matter() -> None:
    fields = set(vars(transformers.GenerationConfig()))
    assert not fields - set(_OPTIONS) - set(_NEUTRAL) - _WITHOUT_EFFECT


@pytest.mark.parametrize("generation", [None, {"pad_token_id": 50, "eos_token_id": 2}])
def test_padding_is_inferred_from_the_padding_id(tmp_path: Path, generation: dict[str, Any] | None) -> None:
    ours, theirs = both(folder_with(tmp_path, generation, pad_token_id=50 if generation is None else None))
    ids = prompts() % 50
    ids[1, :4] = ids[2, :1] = 50
    expected = theirs.generate(ids, max_new_tokens=12, do_sample=False)
    assert ours.generate(ids, max_new_tokens=12, temperature=0.0).tolist() == expected.tolist()
    ids[3, 5] = 50
    with pytest.raises(ValueError, match=r"row 3 is not padded on the left.*id 50, the model's padding"):
        ours.generate(ids)
    assert ours.generate(ids, torch.ones_like(ids), max_new_tokens=2).shape == (4, 11)


@pytest.mark.parametrize("search", [{}, {"num_beams": 2}], ids=str)
def test_rows_that_end_early_are_filled_with_the_first_end_of_the_generation_config(
    tmp_path: Path, search: dict[str, Any]
) -> None:
    ours, theirs = both(folder_with(tmp_path, {"do_sample": False, "eos_token_id": list(range(9, 30))}))
    expected = theirs.generate(prompts(), max_new_tokens=20, **search)
    assert (expected[:, -1] == 9).sum() > 1
    assert ours.generate(prompts(), max_new_tokens=20, **search).tolist() == expected.tolist()


def test_an_end_that_is_padding_too_is_read_as_an_id(tmp_path: Path) -> None:
    ours, theirs = both(folder_with(tmp_path, None, pad_token_id=2))
    ids = prompts()
    ids[1, :4] = 2
    expected = theirs.generate(ids, max_new_tokens=12, do_sample=False)
    assert ours.generate(ids, max_new_tokens=12, temperature=0.0).tolist() == expected.tolist()


BEAMS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[7], [9, 12], [33], [40, 5]]},
    {"repetition_penalty": 0.8, "no_repeat_ngram_size": 3, "min_new_tokens": 6},
]


@pytest.mark.parametrize("options", BEAMS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize("eos", [2, [2, 9, 17, 30]])
def test_beams_with_penalties(tmp_path: Path, options: dict[str, Any], eos: Any) -> None:
    ours, theirs = both(folder_with(tmp_path, None))
    ids, mask = prompts(), torch.ones(4, 9, dtype=torch.long)
    mask[1, :4] = 0
    search = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 14}
    expected = theirs.generate(
        ids, attention_mask=mask, do_sample=False, pad_token_id=2, eos_token_id=eos, **search, **options
    )
    asked = {"bad_words" if name == "bad_words_ids" else name: value for name, value in options.items()}
    assert ours.generate(ids, mask, eos_id=eos, **search, **asked).tolist() == expected.tolist()


def test_beams_that_draw_are_as_frequent(tmp_path: Path) -> None:
    ours, theirs = both(folder_with(tmp_path, None))
    ids, draws = prompts(1), 600
    options = {"num_beams": 2, "max_new_tokens": 2, "do_sample": True, "temperature": 0.5, "top_k": 4, "top_p": 0.9}
    torch.manual_seed(0)
    theirs_found = theirs.generate(ids.repeat(draws, 1), pad_token_id=60, eos_token_id=None, **options)
    expected = Counter(map(tuple, theirs_found[:, 9:].tolist()))
    found = Counter(tuple(ours.generate(ids, seed=seed, eos_id=(), **options)[0, 9:].tolist()) for seed in range(draws))
    apart = sum(abs(expected[key] - found[key]) for key in expected | found) / (2 * draws)
    assert apart < 0.1, (expected.most_common(5), found.most_common(5))
    assert len(expected) > 3


@pytest.mark.parametrize("seed", range(6))
def test_scores_are_changed_as_by_their_processors(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 6, (40,), generator=generator).tolist()
    logits = torch.randn(1, V, generator=generator) * 3
    words = [[3], [ids[-1], 5], [ids[-2], ids[-1], 8], [9, 9], [2], [*ids, 7], [*ids, *ids, 7]]
    cases: list[tuple[dict[str, Any], list[Any]]] = [
        ({"no_repeat_ngram_size": n}, [process.NoRepeatNGramLogitsProcessor(n)]) for n in (1, 2, 3, 39, 40, 41, 60)
    ]
    cases += [
        ({"bad_words": words}, [process.NoBadWordsLogitsProcessor(words, eos_token_id=torch.tensor([2]))]),
        (
            {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "bad_words": words},
            [
                process.RepetitionPenaltyLogitsProcessor(1.7),
                process.NoRepeatNGramLogitsProcessor(2),
                process.NoBadWordsLogitsProcessor(words, eos_token_id=torch.tensor([2])),
            ],
        ),
    ]
    for options, processors in cases:
        expected = transformers.LogitsProcessorList(processors)(torch.tensor([ids]), logits.clone())[0]
        got = processed_scores(GenerationOptions(**options), ids, ids, (2,), logits[0])
        # Penalties are float64 here before they are rounded to float32.
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0, msg=str(options))
        hooked = processed_scores(GenerationOptions(logits_processor=processors), ids, ids, (2,), logits[0])
        assert torch.equal(hooked, expected), options
