"""Filters and penalties of the sampler in PyTorch, held to their published algorithms in NumPy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.generation.generate import Engine, GenerationOptions
from bpe_llama.model.sampling.ordered import (
    FILTERS,
    LLAMA_CPP_FILTERS,
    exclude_top_choices,
    filtered_in_order,
    mirostat_bound,
    mirostat_kept,
    top_n_sigma,
    xtc_chance,
)
from bpe_llama.model.sampling.processors import dry_penalties
from tests.model.generation.naive import finish

Make = Callable[..., LlamaForCausalLM]
V = 97


def numpy_probs(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


@pytest.mark.parametrize("seed", range(8))
def test_dry_is_the_published_algorithm(seed: int) -> None:
    """As in text-generation-webui: for each place of the last id, how far what is before it equals the end."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, 4, 60).tolist()
    breakers = [[3]] if seed % 2 else []
    for base, allowed, last_n in ((1.75, 2, -1), (1.0, 1, -1), (2.0, 3, 25), (1.3, 0, 40)):
        seen = ids if last_n < 0 else ids[-last_n:]
        expected: dict[int, float] = {}
        for place in range(len(seen) - 1):
            length = 0
            while place - length >= 0 and seen[place - length] == seen[len(seen) - 1 - length]:
                if [seen[place - length]] in breakers:
                    break
                length += 1
            if length >= allowed:
                follower = seen[place + 1]
                penalty = 0.7 * base ** (length - allowed)
                expected[follower] = max(expected.get(follower, 0.0), penalty)
        since = next((n for n, token in enumerate(reversed(seen)) if [token] in breakers), len(seen))
        expected = {} if since < allowed else expected
        got = dry_penalties(ids, multiplier=0.7, base=base, allowed_length=allowed, last_n=last_n, breakers=breakers)
        assert got == pytest.approx(expected)


def test_dry_stops_at_breakers_of_several_ids_and_grows_no_further_than_a_float() -> None:
    ids = [1, 2, 3, 9, 8, 4, 5, 6, 1, 2, 3, 9, 8, 4, 5, 6]
    assert dry_penalties(ids, multiplier=1.0, base=2.0) == {1: 2.0**6}
    assert dry_penalties(ids, multiplier=1.0, base=2.0, breakers=[[9, 8], [7, 7]]) == {1: 2.0**1}
    assert dry_penalties(ids, multiplier=1.0, base=2.0, breakers=[[9, 8, 4, 5], [6, 1]]) == {}
    (penalty,) = dry_penalties([5] * 3000, multiplier=1.0, base=1.75).values()
    assert penalty == 1.75**158  # 159 is beyond the largest float32
    assert dry_penalties([5, 6], multiplier=1.0) == {}
    assert dry_penalties([], multiplier=1.0) == {}


@pytest.mark.parametrize("seed", range(6))
def test_xtc_and_top_n_sigma_are_llama_cpps(seed: int) -> None:
    random = np.random.default_rng(seed)
    row = (random.normal(size=50) * 2).astype(np.float32)
    row[::7] = -np.inf
    scores = torch.from_numpy(row)
    for threshold in (0.0, 0.02, 0.1, 0.3, 0.5, 0.51):
        probs, order = numpy_probs(row.astype(np.float64)), np.argsort(-row, kind="stable")
        last = -1
        for rank, token in enumerate(order):
            if probs[token] < threshold:
                break
            last = rank
        expected = row.copy()
        if threshold <= 0.5 and last > 0:
            expected[order[:last]] = -np.inf
        assert exclude_top_choices(scores, threshold).numpy().tolist() == expected.tolist()
    for sigmas in (0.0, 0.5, 1.0, 3.0):
        finite = row[np.isfinite(row)].astype(np.float64)
        kept = row >= finite.max() - sigmas * finite.std() if sigmas else np.ones(50, dtype=bool)
        assert top_n_sigma(scores, sigmas).numpy().tolist() == np.where(kept, row, -np.inf).tolist()


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_is_the_published_algorithm(version: int) -> None:
    random, mu, tau, eta = np.random.default_rng(version), 8.0, 4.0, 0.1
    for _ in range(40):
        row = (random.normal(size=300) * 3).astype(np.float32)
        order = np.argsort(-row, kind="stable")
        probs = numpy_probs(row.astype(np.float64))[order]
        if version == 2:
            count = 1
            while count < 300 and -np.log2(probs[count]) <= mu:
                count += 1
        else:
            upper = lower = 0.0
            for i in range(99):
                t, b = math.log((i + 2) / (i + 1)), math.log(probs[i] / probs[i + 1])
                upper, lower = upper + t * b, lower + t * t
            s = upper / lower
            k = ((s - 1) * 2**mu / (1 - 300 ** -(s - 1))) ** (1 / s)
            count = min(max(int(k), 1), 300)
        kept = mirostat_kept(torch.from_numpy(row), version, mu)
        assert sorted(torch.nonzero(kept > -torch.inf).flatten().tolist()) == sorted(order[:count].tolist())
        left = probs[:count] / probs[:count].sum()
        rank = int(random.choice(count, p=left))
        following = mu - eta * (-math.log2(left[rank]) - tau)
        assert mirostat_bound(kept, int(order[rank]), mu, tau, eta) == pytest.approx(following, abs=1e-5)
        mu = following


def test_mirostat_comes_near_the_surprise_it_aims_at(tiny_model: Make) -> None:
    model = tiny_model(eos_token_id=None, initializer_range=0.05, max_position_embeddings=512)
    engine = Engine(model, 1)
    for tau in (1.5, 3.0):
        options = GenerationOptions(max_new_tokens=400, mirostat=2, mirostat_tau=tau, temperature=1.0, mirostat_eta=0.2)
        (sequence,) = engine.prefill([[5]], [options])
        finish(engine)
        bounds = [2 * tau, *sequence.mirostat_bounds]
        seen = [tau - (after - before) / 0.2 for before, after in itertools.pairwise(bounds)]
        assert np.mean(seen[50:]) == pytest.approx(tau, abs=0.1)


def test_the_order_of_filters_counts_and_the_usual_one_is_the_samplers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, V, generator=generator) * 3
    values = {"temperature": 1.7, "top_k": 30, "top_p": 0.8, "min_p": 0.05, "typical_p": 0.9}
    for preset, order in (("exact", FILTERS), ("llama_cpp", LLAMA_CPP_FILTERS)):
        options = GenerationOptions(preset=preset, **values)
        for row in logits:
            left = filtered_in_order(row, order, options.filter_values, 0.0)
            expected = options.sampler.probs(row)
            assert np.allclose(left.double().softmax(-1), expected, atol=1e-6)
            assert ((left > -torch.inf).numpy() == (expected > 0)).all()
    first = filtered_in_order(logits[0], ["top_p", "temperature"], options.filter_values, 0.0)
    second = filtered_in_order(logits[0], ["temperature", "top_p"], options.filter_values, 0.0)
    assert int((first > -torch.inf).sum()) < int((second > -torch.inf).sum())


@pytest.mark.parametrize("top_k", [0, 2])
def test_filters_keep_ids_with_an_underflowing_weight(top_k: int) -> None:
    row = torch.tensor([0.0, -800.0, -900.0])
    options = GenerationOptions(preset="llama_cpp", temperature=500.0, top_k=top_k, top_p=1.0)
    left = filtered_in_order(row, LLAMA_CPP_FILTERS, options.filter_values, 0.0)
    assert np.allclose(left.double().softmax(-1), options.sampler.probs(row))


def test_xtc_acts_as_often_as_it_is_told() -> None:
    acted = np.mean([xtc_chance(seed, step) <= 0.3 for seed in range(50) for step in range(50)])
    assert acted == pytest.approx(0.3, abs=0.03)
