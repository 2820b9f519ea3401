"""The sampler against its definition in NumPy: sort, cumulative sum and threshold in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpe_llama import Sampler
from tests.logit_rows import KINDS, ROWS, row_of


def definition(row, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Return (probs, margin): the distribution, and the least distance of a cumulative mass from p."""
    wide = row.astype(np.float64)
    probs = np.exp((wide - wide.max()) / temperature)
    order = np.argsort(-wide, kind="stable")
    margin = 1.0
    if 0 < top_k < len(row):
        order = order[:top_k]
    if top_p < 1:
        mass = np.cumsum(probs[order]) / probs[order].sum()
        margin = np.abs(mass - top_p).min()
        order = order[: int(np.searchsorted(mass, top_p)) + 1]
    kept = np.zeros_like(probs)
    kept[order] = probs[order]
    if min_p > 0:
        margin = min(margin, np.abs(kept[order] / kept.max() - min_p).min())
        kept[kept < min_p * kept.max()] = 0
    return kept / kept.sum(), margin


parameters = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0.05, 5.0),
        "top_k": st.integers(0, 250),
        "top_p": st.floats(1e-6, 1.0),
        "min_p": st.floats(0.0, 1.0),
    },
)


def sampler(seed=0, **given_parameters):
    return Sampler(**{"temperature": 1.0, "top_p": 1.0, **given_parameters}, seed=seed)


@given(ROWS, parameters)
def test_probs_are_those_of_the_definition(row, given_parameters):
    expected, margin = definition(row, **given_parameters)
    got = sampler(**given_parameters).probs(row)
    assert got.dtype == np.float64
    assert got.sum() == pytest.approx(1, abs=1e-12)
    if margin > 1e-12:
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-300)


@given(ROWS, parameters, st.integers(0, 2**64 - 1))
def test_draws_come_from_the_filtered_ids(row, given_parameters, seed):
    chosen = sampler(seed, **given_parameters)
    probs = chosen.probs(row)
    assert all(probs[chosen.sample(row)] > 0 for _ in range(4))


@given(ROWS, st.floats(1e-6, 1.0), st.floats(1e-6, 1.0))
def test_a_larger_p_keeps_no_less(row, one, other):
    small, large = (np.flatnonzero(sampler(top_p=p).probs(row)) for p in sorted((one, other)))
    assert set(small) <= set(large)
    assert len(small) > 0


@given(st.lists(st.integers(-2000, 2000), min_size=1, max_size=200), st.integers(-500, 500), parameters)
def test_adding_a_constant_changes_nothing(numerators, shift, given_parameters):
    row = np.array(numerators, dtype=np.float32) / 128
    chosen = sampler(**given_parameters)
    np.testing.assert_allclose(chosen.probs(row), chosen.probs(row + np.float32(shift)), rtol=1e-12)


@given(st.integers(1, 300), st.integers(1, 300), st.floats(-50, 50, width=32))
def test_ties_are_broken_by_id(size, kept, value):
    row = np.full(size, value, dtype=np.float32)
    expected = list(range(min(size, kept)))
    assert np.flatnonzero(sampler(top_k=kept).probs(row)).tolist() == expected
    if kept <= size:
        assert np.flatnonzero(sampler(top_p=kept / size).probs(row)).tolist() == expected


@pytest.mark.parametrize("size", [1, 2, 1023, 1024, 1025, 32_000, 128_256, 262_144])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_size_and_kind(size, kind):
    row = row_of(kind, size)
    for given_parameters in (
        {"top_p": 0.9, "temperature": 0.8},
        {"top_k": 40},
        {"top_k": 500, "top_p": 0.3, "min_p": 0.05},
    ):
        chosen = sampler(seed=size, **given_parameters)
        expected, margin = definition(row, **given_parameters)
        probs = chosen.probs(row)
        if margin > 1e-12:
            np.testing.assert_allclose(probs, expected, rtol=1e-10)
        assert all(probs[chosen.sample(row)] > 0 for _ in range(3))


@pytest.mark.parametrize("kind", ["flat", "peaked", "tied"])
@pytest.mark.parametrize(
    "given_parameters",
    [{}, {"top_k": 60, "temperature": 0.7}, {"top_p": 0.8}, {"typical_p": 0.7}, {"top_p": 0.9, "min_p": 0.02}],
)
def test_draws_follow_probs(kind, given_parameters):
    random = np.random.default_rng(17)
    row = {
        "flat": lambda: random.normal(size=500),
        "peaked": lambda: random.normal(size=500) + 6 * (random.random(500) < 0.02),
        "tied": lambda: np.round(random.normal(size=500) * 2) / 2,
    }[kind]().astype(np.float32)
    chosen = sampler(**given_parameters)
    # Typical-p sorts each row.
    draws = 10_000 if "typical_p" in given_parameters else 60_000
    ids = chosen.sample(np.broadcast_to(row, (draws, 500)), seeds=range(draws), step=5)
    probs = chosen.probs(row)
    kept = probs > 0
    counts = np.bincount(ids, minlength=500)
    assert counts[~kept].sum() == 0
    expected = draws * probs[kept]
    freedom = kept.sum() - 1
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum()
    # Four and a half standard deviations; the seeds are fixed, so the test is not flaky.
    assert abs(chi_square - freedom) < 4.5 * np.sqrt(2 * freedom)


def uniforms(seed, steps):
    """Return a stream's random numbers at some steps: SplitMix64 from its paper, in NumPy's wrapping integers."""

    def mix(word):
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return word ^ (word >> np.uint64(31))

    start = mix(np.array([seed], dtype=np.uint64))
    words = mix(start + (steps + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def test_random_numbers_are_fine_enough_for_rare_ids():
    """Random numbers of 24 bits would reach only 16 of the 1024 ids that hold the last 2^-20 of this mass."""
    row = np.zeros(1025, dtype=np.float32)
    row[1:] = -30 * np.log(2)
    chosen = sampler(seed=9)
    mass = chosen.probs(row).cumsum()
    found = {}
    for start in range(0, 24_000_000, 2_000_000):
        steps = np.arange(start, start + 2_000_000, dtype=np.uint64)
        draws = uniforms(9, steps)
        for index in np.flatnonzero(draws > mass[0]):
            found[int(steps[index])] = int(np.searchsorted(mass, draws[index], side="right"))
    assert len(found) >= 10
    for step, expected in found.items():
        assert abs(chosen.sample(row, step=step) - expected) <= 1
    rare_ids = np.array(list(found.values())) - 1
    assert len(set(rare_ids % 64)) > 5
