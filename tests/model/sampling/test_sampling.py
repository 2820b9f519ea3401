"""The torch twin against the Rust sampler: same distribution, same random numbers, same ids."""

import numpy as np
import pytest
import torch

from bpe_llama import Sampler
from bpe_llama.model import sampling

GENERATOR = torch.Generator().manual_seed(6)
LOGITS = torch.randn(8, 3000, generator=GENERATOR)
PARAMETERS = [
    {"temperature": 1.0, "top_p": 1.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 0.8, "top_p": 0.3, "top_k": 50},
    {"temperature": 1.3, "top_p": 1.0, "min_p": 0.05},
    {"temperature": 0.7, "top_p": 0.95, "top_k": 500, "min_p": 0.01},
    {"temperature": 0.0},
]


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_twin_and_sampler_agree(parameters, dtype):
    logits = LOGITS.to(dtype)
    logits[3] = torch.round(logits[3].float() * 2).to(dtype) / 2
    sampler = Sampler(**parameters, seed=21)
    probs = sampling.filtered_probs(logits, **parameters).numpy()
    np.testing.assert_allclose(probs, sampler.probs(logits), rtol=1e-11)
    for step in range(40):
        ids = sampling.sample_logits(logits, **parameters, seed=21, step=step)
        assert ids.dtype == torch.int64
        assert ids.tolist() == sampler.sample(logits, step=step).tolist()


def test_twin_and_sampler_penalise_alike():
    penalties = {"repetition_penalty": 1.4, "presence_penalty": 0.3, "frequency_penalty": 0.2}
    history = [[1, 5, 1], [7], [], [2999, 0], [4] * 9, [], [], [8, 9]]
    padded = torch.full((8, 9), -1)
    for row, ids in enumerate(history):
        padded[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    probs = sampling.filtered_probs(LOGITS, **penalties, history_BT=padded).numpy()
    np.testing.assert_allclose(probs, Sampler(**penalties).probs(LOGITS, history), rtol=1e-11)


def test_uniform_is_the_same_number_everywhere_and_finer_than_24_bits():
    steps = torch.arange(20_000)
    numbers = sampling.uniform(2**64 - 1, steps)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert torch.equal(numbers, sampling.uniform(torch.tensor(-1), steps))
    # The Rust tests hold the same number.
    assert sampling.uniform(1, 0).item() == 0.7497482413580301
    # A 24-bit generator gives nothing but multiples of 2**-24; of these draws one in 2**29 is one.
    assert ((numbers * 2**24).frac() == 0).sum() == 0
    # Kolmogorov and Smirnov: the distance from the diagonal, at a fixed seed.
    ordered = numbers.sort().values
    assert (ordered - (steps + 0.5) / len(steps)).abs().max() < 1.63 / len(steps) ** 0.5


def test_one_uniform_for_all_rows_unless_seeds_differ():
    equal = LOGITS[:1].expand(50, -1)
    assert len(set(sampling.sample_logits(equal, seed=3).tolist())) == 1
    ids = sampling.sample_logits(equal, seed=torch.arange(50))
    assert len(set(ids.tolist())) > 10
    assert ids.tolist() == Sampler().sample(equal, seeds=range(50)).tolist()


def test_bad_rows_and_parameters():
    for value, message in ((torch.nan, "logit 7 is nan"), (torch.inf, "logit 7 is inf")):
        logits = LOGITS.clone()
        logits[2, 7] = value
        with pytest.raises(ValueError, match=f"row 2: {message}"):
            sampling.sample_logits(logits)
    with pytest.raises(ValueError, match="row 0: every logit is -inf"):
        sampling.sample_logits(torch.full((1, 4), -torch.inf))
    for parameters in ({"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"min_p": 2}, {"repetition_penalty": 0}):
        with pytest.raises(ValueError, match=next(iter(parameters))):
            sampling.sample_logits(LOGITS, **parameters)
    with pytest.raises(TypeError, match="floating-point"):
        sampling.sample_logits(torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="shape"):
        sampling.sample_logits(torch.zeros(3, 0))
    two, words = torch.zeros(2, 5), torch.zeros(3, dtype=torch.int64)
    for wrong, message in (
        ({"logit_bias": torch.zeros(3, 5)}, r"logit_bias has shape \(3, 5\); expected \(5,\) or \(2, 5\)"),
        ({"history_BT": words[:, None], "presence_penalty": 1.0}, r"history_BT has shape \(3, 1\); expected \(2, T\)"),
        ({"history_BT": words[[0, 0]], "presence_penalty": 1.0}, r"history_BT has shape \(2,\); expected \(2, T\)"),
        ({"seed": words}, r"seed has shape \(3,\); expected \(\) or \(2,\)"),
        ({"step": words[None, :2]}, r"step has shape \(1, 2\); expected \(\) or \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            sampling.sample_logits(two, **wrong)
