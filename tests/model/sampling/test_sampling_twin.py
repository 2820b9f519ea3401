"""The torch twin against the Rust sampler on every kind of row and option, and without ever waiting for a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from bpe_llama import Sampler
from bpe_llama.model import sampling
from tests.logit_rows import KINDS, ROWS, row_of

SHARES = st.floats(1e-4, 1.0) | st.sampled_from([1 - 2.0**-53, 1 - 2.0**-50])
OPTIONS = st.fixed_dictionaries(
    {"temperature": st.floats(0.05, 5.0), "preset": st.sampled_from(["exact", "meta", "transformers", "llama_cpp"])},
    optional={"top_k": st.integers(0, 120), "top_p": SHARES, "min_p": st.floats(0.0, 1.0), "typical_p": SHARES},
)


def assert_same(row: np.ndarray, seed: int, step: int, options: dict) -> None:
    """Compare distributions, and ids unless the random number falls within rounding of the border of two."""
    sampler = Sampler(**options, seed=seed)
    expected = sampler.probs(row)
    tensor = torch.from_numpy(row)
    probs = sampling.filtered_probs(tensor, **options).numpy()
    np.testing.assert_array_equal(probs > 0, expected > 0)
    np.testing.assert_allclose(probs, expected, rtol=1e-9)
    chosen, twin = (
        sampler.sample(row, step=step),
        int(sampling.sample_logits(tensor, **options, seed=seed, step=step)),
    )
    if chosen != twin:
        # The Rust sampler draws from float32 weights, which err by 2^-22 each.
        border = expected[: max(chosen, twin)].sum()
        assert expected[min(chosen, twin) + 1 : max(chosen, twin)].sum() < 1e-6
        assert abs(border - float(sampling.uniform(seed, step))) < 1e-6


@given(ROWS, OPTIONS, st.integers(0, 2**64 - 1))
# At temperature 1 the first has no weight in float64 left.
@example(np.array([0, 746], np.float32), {"temperature": 2.0, "preset": "llama_cpp", "typical_p": 0.5}, 0)
# Typical-p removes the highest logit, and relative to it no weight is left at this temperature.
@example(
    np.array([1] + [0] * 99, np.float32),
    {"temperature": 1e-3, "preset": "llama_cpp", "typical_p": 0.5, "top_p": 0.1},
    0,
)
# Rounding puts top-p's goal beyond the mass that top-k kept: four ids stayed instead of three.
@example(
    np.linspace(5, 0, 20, dtype=np.float32),
    {"temperature": 1.0, "preset": "meta", "top_k": 3, "top_p": 1 - 2.0**-53},
    0,
)
def test_twin_and_sampler_agree_on_any_row(row, options, seed):
    assert_same(row, seed, 3, {"top_p": 1.0, **options})


@pytest.mark.parametrize("size", [1, 2, 1025, 32_000, 262_144])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_size_and_kind(size, kind):
    row = row_of(kind, size)
    assert_same(row, size, 1, {"top_k": 500, "top_p": 0.9, "min_p": 0.01})
    assert_same(row, size, 2, {"temperature": 0.7, "top_p": 0.95, "typical_p": 0.8})


@pytest.mark.parametrize("preset", ["exact", "meta", "transformers", "llama_cpp"])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_everything_at_once(preset, temperature):
    logits = torch.randn(5, 400, generator=torch.Generator().manual_seed(3))
    logits[2] = (logits[2] * 2).round() / 2
    options = {
        "temperature": temperature,
        "top_k": 90,
        "top_p": 0.9,
        "min_p": 0.02,
        "typical_p": 0.8,
        "preset": preset,
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.2,
        "logit_bias": {7: 3.0, 9: -1.0},
        "banned_ids": [1, 2, 3],
        "allowed_ids": list(range(0, 400, 3)),
    }
    history = torch.randint(0, 400, (5, 12), generator=torch.Generator().manual_seed(4))
    sampler = Sampler(**options, seed=8)
    probs = sampling.filtered_probs(logits, **options, history_BT=history).numpy()
    np.testing.assert_allclose(probs, sampler.probs(logits, history.tolist()), rtol=1e-9)
    for step in range(20):
        ids = sampling.sample_logits(logits, **options, history_BT=history, seed=8, step=step)
        assert ids.tolist() == sampler.sample(logits, history.tolist(), step=step).tolist()


def test_ids_and_biases_may_be_tensors_one_set_a_row():
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(5))
    bias = torch.zeros(2, 50)
    bias[0, 4] = 2.5
    each = {"logit_bias": bias, "banned_ids": torch.tensor([[1, 2], [3, -1]]), "allowed_ids": torch.arange(20)}
    probs = sampling.filtered_probs(logits, **each).numpy()
    for row, (biases, banned) in enumerate([({4: 2.5}, [1, 2]), ({}, [3])]):
        sampler = Sampler(logit_bias=biases, banned_ids=banned, allowed_ids=range(20))
        np.testing.assert_allclose(probs[row], sampler.probs(logits[row]), rtol=1e-11)
    forced = sampling.sample_logits(logits, allowed_ids=torch.tensor([[31], [2]]))
    assert forced.tolist() == [31, 2]
    assert sampling.sample_logits(logits, allowed_ids=[44]).tolist() == [44, 44]


@pytest.mark.parametrize("bias", [-3, np.float64(2.5), np.int64(2), True])
def test_biases_are_numbers_of_any_type(bias):
    logits = torch.randn(50, generator=torch.Generator().manual_seed(5))
    expected = Sampler(logit_bias={4: float(bias)}).probs(logits)
    np.testing.assert_allclose(sampling.filtered_probs(logits, logit_bias={4: bias}).numpy(), expected, rtol=1e-11)


OUTSIDE = [
    ({"banned_ids": [50]}, "row 0: banned_ids holds id 50, outside the vocabulary of 50"),
    ({"allowed_ids": [-1]}, "row 0: allowed_ids holds id -1"),
    ({"logit_bias": {77: 1.0}}, "row 0: logit_bias holds id 77"),
    ({"banned_ids": torch.tensor([[1], [60]])}, "row 1: banned_ids holds id 60"),
    ({"history_BT": torch.tensor([[1], [99]]), "presence_penalty": 1.0}, "row 1: history holds id 99"),
    ({"banned_ids": range(50)}, "row 0: every logit is -inf"),
    ({"allowed_ids": []}, "row 0: every logit is -inf"),
    ({"logit_bias": {1: float("nan")}}, "logit_bias of id 1 must be finite, got nan"),
    ({"logit_bias": torch.zeros(49)}, r"logit_bias has shape \(49,\); expected \(50,\)"),
    ({"banned_ids": torch.zeros(3, 1)}, r"banned_ids has shape \(3, 1\); expected \(N,\) or \(2, N\)"),
    ({"typical_p": 0.0}, r"typical_p must be in \(0, 1\], got 0"),
    ({"top_p": float("nan")}, "top_p"),
    ({"temperature": float("inf")}, "temperature must be finite and at least 0, got inf"),
    ({"presence_penalty": float("nan")}, "presence_penalty must be finite"),
    ({"frequency_penalty": float("inf")}, "frequency_penalty must be finite"),
    ({"preset": "vllm"}, "preset must be one of 'exact', 'meta', 'transformers', 'llama_cpp', got 'vllm'"),
    ({"seed": -1}, r"seed and step must be in \[0, 2\*\*64\), got -1"),
]


@pytest.mark.parametrize(("arguments", "message"), OUTSIDE)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sampling.sample_logits(torch.zeros(2, 50), **arguments)


@pytest.mark.parametrize("shape", [(), (1, 2, 3), (0,), (2, 0)])
def test_bad_shapes_are_named(shape):
    with pytest.raises(ValueError, match="shape"):
        sampling.sample_logits(torch.zeros(shape))


def test_k_above_the_vocabulary_keeps_all_and_no_rows_give_no_ids():
    assert (sampling.filtered_probs(torch.zeros(4), top_k=9, top_p=1.0) == 0.25).all()
    assert sampling.sample_logits(torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize("preset", ["exact", "transformers", "llama_cpp"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_nothing_waits_for_the_device(monkeypatch, preset, temperature):
    """Fake tensors of a CUDA device hold no values: reading one, or a shape that depends on one, raises."""
    # The kernels cannot run on them; that these read nothing back, their CUDA graph shows on a GPU.
    monkeypatch.setattr(sampling, "HAS_TRITON", False)
    with FakeTensorMode():
        logits = torch.empty(3, 100, device="cuda", dtype=torch.bfloat16)
        with pytest.raises(DataDependentOutputException):
            bool(logits.isnan().any())
        ids = torch.empty(3, 4, device="cuda", dtype=torch.int64)
        options = {
            **{"temperature": temperature, "preset": preset, "top_k": 9, "min_p": 0.1, "typical_p": 0.9},
            **{"repetition_penalty": 1.2, "history_BT": ids, "banned_ids": ids, "allowed_ids": ids},
            "logit_bias": torch.empty(100, device="cuda"),
        }
        step = torch.empty((), device="cuda", dtype=torch.int64)
        chosen = sampling.sample_logits(logits, **options, seed=7, step=step)
        assert chosen.shape == (3,)
        assert chosen.device.type == "cuda"
        assert sampling.filtered_probs(logits, **options).shape == (3, 100)


def test_one_graph_holds_it_all_and_marks_bad_rows():
    """As one traced graph, whose rows cannot raise: -1 and NaN for those that cannot be drawn from."""
    logits = torch.randn(6, 64, generator=torch.Generator().manual_seed(6))
    plain = sampling.sample_logits(logits, top_k=20, seed=2, step=5)
    logits[1, 3] = torch.nan
    logits[2, 63] = torch.inf
    logits[3] = -torch.inf
    banned = torch.tensor([[1], [1], [1], [1], [64], [-1]])

    def choose(logits: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        return sampling.sample_logits(logits, top_k=20, seed=2, step=step, banned_ids=banned)

    traced = torch.compile(choose, fullgraph=True, backend="eager")
    assert traced(logits, torch.tensor(5)).tolist() == [plain[0], -1, -1, -1, -1, plain[5]]
    probs = torch.compile(sampling.filtered_probs, fullgraph=True, backend="eager")(logits)
    assert probs.isnan().any(-1).tolist() == [False, True, True, True, False, False]
    torch._dynamo.reset()


def test_draws_follow_probs():
    row = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5, 1.5])
    probs = sampling.filtered_probs(row, temperature=0.9, top_p=0.97)
    kept = probs > 0
    draws = 40_000
    for seed in range(3):
        ids = sampling.sample_logits(
            row.expand(draws, -1), temperature=0.9, top_p=0.97, seed=seed, step=torch.arange(draws)
        )
        counts = torch.bincount(ids, minlength=6).double()
        assert (counts[~kept] == 0).all()
        expected = draws * probs[kept]
        # 99.99th percentile of chi-square with four degrees of freedom; the seeds are fixed, so this never flickers.
        assert ((counts[kept] - expected) ** 2 / expected).sum() < 23.5


@given(st.lists(st.integers(-2000, 2000), min_size=1, max_size=60), st.integers(-500, 500), OPTIONS)
def test_adding_a_constant_changes_nothing(numerators, shift, options):
    row = torch.tensor(numerators) / 128
    one, other = (sampling.filtered_probs(each, **{"top_p": 1.0, **options}) for each in (row, row + shift))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
