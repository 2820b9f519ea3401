import copy
import itertools
import math
import pickle
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest

from bpe_llama import Sampler
from tests.ctrl_c import assert_ctrl_c_ends

RNG = np.random.default_rng(20)
ROW = RNG.normal(size=1000).astype(np.float32)
BATCH = RNG.normal(size=(12, 1000)).astype(np.float32)


def test_a_row_gives_an_int_and_a_batch_an_array() -> None:
    one = Sampler().sample(ROW)
    assert type(one) is int
    assert 0 <= one < 1000
    many = Sampler().sample(BATCH)
    assert many.dtype == np.int64
    assert many.shape == (12,)
    assert Sampler().sample(BATCH[:1]).shape == (1,)
    assert Sampler().sample(BATCH[:0]).shape == (0,)


def test_defaults_are_those_of_the_design() -> None:
    sampler = Sampler()
    assert (sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p) == (0.8, 0, 0.95, 0.0)
    assert (sampler.repetition_penalty, sampler.presence_penalty, sampler.frequency_penalty) == (1.0, 0.0, 0.0)
    assert (sampler.seed, sampler.step) == (0, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_dtypes_agree(dtype: type) -> None:
    rounded = BATCH.astype(np.float16)
    expected = Sampler(seed=3).sample(rounded.astype(np.float32))
    assert (Sampler(seed=3).sample(rounded.astype(dtype)) == expected).all()


def test_strided_arrays_are_read_without_a_copy() -> None:
    expected = Sampler(seed=3).sample(BATCH)
    wide = np.zeros((12, 2, 1500), dtype=np.float32)
    wide[:, -1, :1000] = BATCH
    for view in (wide[:, -1, :1000], np.asfortranarray(BATCH), BATCH[::-1].copy()[::-1]):
        assert (Sampler(seed=3).sample(view) == expected).all()
    backwards = BATCH[:, ::-1].copy()[:, ::-1]
    assert (Sampler(seed=3).sample(backwards) == expected).all()
    assert (Sampler(seed=3).sample(np.broadcast_to(ROW, (3, 1000))) == Sampler(seed=3).sample(ROW)).all()


def test_inputs_do_not_change() -> None:
    row = ROW.copy()
    row.flags.writeable = False
    Sampler(repetition_penalty=2.0).sample(row, history=[1, 2, 3])
    assert (row == ROW).all()


def test_the_same_seed_step_and_logits_give_the_same_id_whatever_the_batch() -> None:
    together = Sampler(seed=9).sample(BATCH)
    alone = [Sampler(seed=9).sample(row) for row in BATCH]
    assert together.tolist() == alone
    assert (Sampler(seed=9).sample(BATCH[::-1])[::-1] == together).all()
    for threads in (1, 2, 3, 12, 50):
        assert (Sampler(seed=9).sample(BATCH, num_threads=threads) == together).all()


def test_steps_count_calls() -> None:
    sampler = Sampler(seed=1)
    draws = [sampler.sample(ROW) for _ in range(20)]
    assert sampler.step == 20
    assert len(set(draws)) > 5
    assert [sampler.sample(ROW, step=step) for step in range(20)] == draws
    assert sampler.step == 20
    sampler.seek(3)
    assert sampler.sample(ROW) == draws[3]
    with pytest.raises(ValueError):
        sampler.sample(np.full(4, np.nan, dtype=np.float32))
    assert sampler.step == 4


def test_an_error_takes_no_step() -> None:
    sampler, logits = Sampler(), np.zeros(1000, np.float32)
    with pytest.raises(ValueError, match="top_n is 1001, but the vocabulary has 1000 ids"):
        sampler.sample_with_logprobs(logits, top_n=1001)
    assert sampler.step == 0


@pytest.mark.parametrize("call", ["sample", "sample_with_logprobs", "probs"])
def test_rows_beyond_memory_are_an_error(call: str) -> None:
    """Of an array that itself takes 4 bytes: the process was aborted."""
    with pytest.raises(MemoryError, match="logits"):
        getattr(Sampler(), call)(np.broadcast_to(np.zeros((1, 1), np.float32), (1 << 45, 1)))


def test_seeds_let_equal_rows_differ() -> None:
    rows = np.broadcast_to(ROW, (50, 1000))
    assert len(set(Sampler().sample(rows).tolist())) == 1
    ids = Sampler().sample(rows, seeds=range(50))
    assert len(set(ids.tolist())) > 10
    assert ids.tolist() == [Sampler(seed=seed).sample(ROW) for seed in range(50)]
    with pytest.raises(ValueError, match="3 seeds for 50 rows"):
        Sampler().sample(rows, seeds=[1, 2, 3])


def test_temperature_zero_is_argmax_with_the_lowest_id() -> None:
    assert Sampler(temperature=0).sample(np.array([1, 5, 5, 2], dtype=np.float32)) == 1
    assert Sampler(temperature=0).probs(np.array([1, 5, 5, 2], dtype=np.float32)).tolist() == [0, 1, 0, 0]
    assert (Sampler(temperature=0).sample(BATCH) == BATCH.argmax(1)).all()
    penalised = Sampler(temperature=0, presence_penalty=4.5).sample(np.array([1, 5, 4, 2], dtype=np.float32), [1])
    assert penalised == 2


def test_ties_go_to_the_lower_id() -> None:
    row = np.array([0, 1, 1, 1, 0, 1], dtype=np.float32)
    kept = Sampler(temperature=1.0, top_k=2, top_p=1.0).probs(row)
    assert np.flatnonzero(kept).tolist() == [1, 2]
    assert np.flatnonzero(Sampler(temperature=1.0, top_p=0.5).probs(np.zeros(10, np.float32))).tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_k_above_the_vocabulary_keeps_everything() -> None:
    plain = Sampler(temperature=1.0, top_p=1.0).probs(ROW)
    for top_k in (1000, 1001, 2**64 - 1):
        assert (Sampler(temperature=1.0, top_k=top_k, top_p=1.0).probs(ROW) == plain).all()


def test_top_p_keeps_the_id_that_reaches_p() -> None:
    row = np.log(np.array([0.1, 0.5, 0.3, 0.1], dtype=np.float32))
    for top_p, kept in (
        (0.01, [1]),
        (0.49, [1]),
        (0.51, [1, 2]),
        (0.79, [1, 2]),
        (0.85, [0, 1, 2]),
        (1.0, [0, 1, 2, 3]),
    ):
        assert np.flatnonzero(Sampler(temperature=1.0, top_p=top_p).probs(row)).tolist() == kept


def test_penalties_follow_their_formulas() -> None:
    row = np.array([2.0, -2.0, 1.0, 0.5], dtype=np.float32)
    sampler = Sampler(1.0, 0, 1.0, repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.125)
    penalised = np.array([1.0 - 0.25 - 0.25, -4.0 - 0.25 - 0.125, 1.0, 0.5])
    expected = np.exp(penalised) / np.exp(penalised).sum()
    for history in ([0, 1, 0], (0, 1, 0), np.array([0, 1, 0]), np.array([0, 1, 0], dtype=np.uint32)):
        np.testing.assert_allclose(sampler.probs(row, history=history), expected, rtol=1e-7)
    batch = sampler.probs(np.stack([row, row]), history=[[0, 1, 0], []])
    np.testing.assert_allclose(batch[0], expected, rtol=1e-7)
    np.testing.assert_allclose(batch[1], np.exp(row) / np.exp(row).sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, r"temperature must be finite and at least 0, got -0\.1"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_k": -1}, r"top_k must be in \[0, 2\*\*64\), got -1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"min_p": -0.5}, "min_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": math.inf}, "repetition_penalty"),
        ({"presence_penalty": math.nan}, "presence_penalty"),
        ({"frequency_penalty": math.inf}, "frequency_penalty"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*64\), got -1"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_parameters_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(**arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Sampler(banned_ids=5), TypeError, "banned_ids is 5; expected a sequence of ints"),
        (lambda: Sampler(banned_ids=[1, 1.5]), TypeError, r"banned_ids holds 1\.5; expected ints in \[0, 2\*\*32\)"),
        (lambda: Sampler(allowed_ids=[-1]), ValueError, r"allowed_ids holds -1; expected ints in \[0, 2\*\*32\)"),
        (lambda: Sampler(allowed_ids=["a" * 500]), TypeError, r"allowed_ids holds 'aaa.{60,90} \.\.\.; expected ints"),
        (
            lambda: Sampler(logit_bias=[(1, 2)]),
            TypeError,
            r"logit_bias is \[\(1, 2\)\]; expected a dict of id to number",
        ),
        (lambda: Sampler(logit_bias={2**32: 1}), ValueError, "logit_bias holds 4294967296; expected ints"),
        (lambda: Sampler(logit_bias={7: "x"}), TypeError, "logit_bias of id 7 must be a number, got 'x'"),
        (
            lambda: Sampler(logit_bias={7: 1e300}),
            ValueError,
            r"logit_bias of id 7 must be finite in float32, got 1e\+300",
        ),
        (lambda: Sampler().sample(ROW, seeds=5), TypeError, "seeds is 5; expected a sequence of ints"),
        (lambda: Sampler().sample(ROW, seeds=[-1]), ValueError, r"seeds holds -1; expected ints in \[0, 2\*\*64\)"),
        (lambda: Sampler().sample(ROW, seeds=[1.5]), TypeError, r"seeds holds 1\.5; expected ints"),
        (lambda: Sampler().sample(ROW, num_threads=-1), ValueError, "num_threads must be at least 1, or None, got -1"),
        (lambda: Sampler().probs(ROW, num_threads=0), ValueError, "num_threads must be at least 1, or None, got 0"),
        (lambda: Sampler().probs(ROW, num_threads="2"), TypeError, "num_threads must be an int, or None, got '2'"),
        (lambda: Sampler().sample_with_logprobs(ROW, top_n=-1), ValueError, "top_n must be in .*, got -1"),
    ],
)
def test_arguments_are_named_with_what_was_expected(call: Callable[[], object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_parameters_of_the_wrong_type() -> None:
    for arguments in ({"top_k": 1.5}, {"seed": "x"}, {"temperature": "hot"}):
        with pytest.raises(TypeError):
            Sampler(**arguments)


def test_bad_rows_name_row_and_index() -> None:
    for value in (np.nan, np.inf):
        for method in (Sampler().sample, Sampler().probs, Sampler(temperature=0).sample):
            bad = BATCH.copy()
            bad[7, 123] = value
            bad[9, 1] = np.nan
            with pytest.raises(ValueError, match=r"row 7: logit 123 is (NaN|inf)"):
                method(bad)
            with pytest.raises(ValueError, match=r"row 0: logit 123 is (NaN|inf)"):
                method(bad[7])
    bad = BATCH.copy()
    bad[3] = -np.inf
    with pytest.raises(ValueError, match="row 3: every logit is -inf"):
        Sampler().sample(bad)
    copied = np.array([1.0, np.inf])  # float64, of which a copy in float32 is checked
    with pytest.raises(ValueError, match="row 0: logit 1 is inf; expected a finite number or -inf"):
        Sampler().sample(copied)
    for sampler in (Sampler(), Sampler(logit_bias={1: 3.0})):
        with pytest.raises(ValueError, match=r"row 0: logit 0 is 1e300; expected at most 3\.4028235e38"):
            sampler.sample(np.array([1e300, 1.0]))


def test_bad_arrays() -> None:
    for shape in ((0,), (3, 0), (), (2, 2, 2)):
        with pytest.raises(ValueError, match="shape"):
            Sampler().sample(np.zeros(shape, dtype=np.float32))
    for dtype in (np.int64, np.bool_, np.complex64, object, np.dtype(">f4"), np.dtype("S2")):
        with pytest.raises(TypeError, match="dtype"):
            Sampler().sample(np.zeros(4).astype(dtype))
    for wrong in (None, [1.0, 2.0], "logits", 3.0):
        with pytest.raises(TypeError, match="logits are a"):
            Sampler().sample(wrong)
    misaligned = np.frombuffer(bytes(41), dtype=np.uint8)[1:].view(np.float32)
    with pytest.raises(ValueError, match="aligned"):
        Sampler().sample(misaligned)
    record = np.zeros(3, dtype=[("a", "f4"), ("b", "u1")])
    with pytest.raises(ValueError, match="strides"):
        Sampler().sample(record["a"])


def test_bad_histories() -> None:
    sampler = Sampler(presence_penalty=1.0)
    for bad, each in itertools.product((1000, -1), (sampler, Sampler())):
        with pytest.raises(ValueError, match=f"row 0: history id {bad} at index 2 is outside the vocabulary of 1000"):
            each.sample(ROW, history=[0, 1, bad])
    with pytest.raises(ValueError, match="2 histories for 12 rows"):
        sampler.sample(BATCH, history=[[1], [2]])
    for wrong in ([1.5], [[1]], "ab", 3):
        with pytest.raises(TypeError, match="history"):
            sampler.sample(ROW, history=wrong)
    with pytest.raises(TypeError, match="history"):
        sampler.sample(BATCH, history=list(range(12)))
    with pytest.raises(ValueError, match="64 bits"):
        sampler.sample(ROW, history=[2**70])


def test_copies_continue_at_the_same_step() -> None:
    sampler = Sampler(temperature=0.7, top_k=50, top_p=0.9, min_p=0.01, presence_penalty=0.5, seed=2**64 - 1)
    full = Sampler(typical_p=0.9, logit_bias={1: 2.0}, banned_ids=[3], allowed_ids=[1, 4], preset="llama_cpp")
    assert repr(pickle.loads(pickle.dumps(full))) == repr(eval(repr(full))) == repr(full)
    for _ in range(5):
        sampler.sample(ROW)
    twins = [pickle.loads(pickle.dumps(sampler)), copy.deepcopy(sampler), copy.copy(sampler)]
    expected = [sampler.sample(ROW) for _ in range(5)]
    for twin in twins:
        assert repr(twin) == repr(sampler)
        assert [twin.sample(ROW) for _ in range(5)] == expected


def test_repr_can_be_evaluated() -> None:
    sampler = Sampler(temperature=1e-7, top_p=0.9, seed=5)
    assert repr(eval(repr(sampler))) == repr(sampler)


def test_threads_share_a_sampler() -> None:
    sampler = Sampler(seed=4)
    big = RNG.normal(size=40_000).astype(np.float32)
    expected = sorted(Sampler(seed=4).sample(big, step=step) for step in range(80))
    drawn: list[int] = []
    threads = [threading.Thread(target=lambda: drawn.extend(sampler.sample(big) for _ in range(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(drawn) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", ["sample", "sample_with_logprobs", "probs"])
def test_ctrl_c_stops_a_long_call_within_a_second(call: str, threads: int) -> None:
    script = f"""
import numpy as np
from bpe_llama import Sampler

rows = np.broadcast_to(np.random.default_rng(0).normal(size=32_000).astype(np.float32), (2000, 32_000))
sampler = Sampler(typical_p=0.9)
print("ready", flush=True)
try:
    while True:
        sampler.{call}(rows, num_threads={threads})
except KeyboardInterrupt:
    print("stopped at step", sampler.step, flush=True)
"""
    assert_ctrl_c_ends(script, "stopped at step 0\n")


def test_draws_follow_probs() -> None:
    row = np.array([1.0, 0.0, 2.0, -1.0, 0.5, 1.5], dtype=np.float32)
    for seed in range(3):
        sampler = Sampler(temperature=0.9, top_p=0.97, seed=seed)
        probs = sampler.probs(row)
        counts = np.bincount([sampler.sample(row) for _ in range(20_000)], minlength=6)
        assert (counts[probs == 0] == 0).all()
        kept = probs > 0
        chi_square = ((counts[kept] - 20_000 * probs[kept]) ** 2 / (20_000 * probs[kept])).sum()
        # 99.99th percentile of chi-square with four degrees of freedom; the seeds are fixed, so the test is not flaky.
        assert kept.sum() == 5
        assert chi_square < 23.5


def test_biases_and_bans() -> None:
    row = np.array([2.0, 1.0, 0.0, -1.0], dtype=np.float32)
    flat = {"temperature": 1.0, "top_p": 1.0}
    biased = Sampler(**flat, logit_bias={3: 3.5, 0: -1.0}).probs(row)
    shifted = np.exp(row + np.array([-1.0, 0, 0, 3.5]))
    np.testing.assert_allclose(biased, shifted / shifted.sum(), rtol=1e-12)
    assert np.flatnonzero(Sampler(**flat, banned_ids=[0, 2]).probs(row)).tolist() == [1, 3]
    assert np.flatnonzero(Sampler(**flat, allowed_ids=[1, 2]).probs(row)).tolist() == [1, 2]
    assert Sampler(allowed_ids=[3]).sample(row) == 3
    assert Sampler(temperature=0, banned_ids=np.array([0])).sample(row) == 1
    for arguments in ({"banned_ids": [4]}, {"allowed_ids": [4]}, {"logit_bias": {4: 1.0}}):
        with pytest.raises(ValueError, match=r"row 0: \w+ holds id 4, outside the vocabulary of 4"):
            Sampler(**arguments).sample(row)
    for arguments in ({"banned_ids": range(4)}, {"allowed_ids": []}, {"allowed_ids": [1], "banned_ids": [1]}):
        with pytest.raises(ValueError, match="row 0: every logit is -inf after biases, bans and penalties"):
            Sampler(**arguments).sample(row)
    with pytest.raises(ValueError, match="row 0: logit 0 is inf after biases, bans and penalties"):
        Sampler(logit_bias={0: 3e38}).sample(np.array([3e38, 1.0], dtype=np.float32))
    with pytest.raises(ValueError, match="logit_bias of id 1 must be finite"):
        Sampler(logit_bias={1: math.inf})
    with pytest.raises(ValueError, match="row 0: logit 1 is NaN"):
        Sampler(allowed_ids=[0]).sample(np.array([0, np.nan], dtype=np.float32))


def test_log_probabilities_are_those_of_the_logits_as_given() -> None:
    expected = BATCH.astype(np.float64)
    expected -= np.log(np.exp(expected).sum(1, keepdims=True))
    sampler = Sampler(temperature=0.5, top_k=3, seed=6)
    ids, logprobs, top_ids, top_logprobs = sampler.sample_with_logprobs(BATCH, top_n=5)
    assert (ids == Sampler(temperature=0.5, top_k=3, seed=6).sample(BATCH)).all()
    np.testing.assert_allclose(logprobs, expected[np.arange(12), ids], rtol=1e-12)
    assert (top_ids == np.argsort(-BATCH, 1, kind="stable")[:, :5]).all()
    np.testing.assert_allclose(top_logprobs, -np.sort(-expected, 1)[:, :5], rtol=1e-12)
    one = Sampler(seed=6).sample_with_logprobs(np.array([0, -np.inf, 0], dtype=np.float32), top_n=3)
    assert one[2].tolist() == [0, 2, -1]
    assert one[3].tolist()[2] == -math.inf
    assert one[1] == pytest.approx(-math.log(2))
    with pytest.raises(ValueError, match="top_n is 1001, but the vocabulary has 1000 ids"):
        sampler.sample_with_logprobs(ROW, top_n=1001)


def test_torch_tensors_are_read_without_a_copy() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensor = torch.from_numpy(BATCH)
    expected = Sampler(seed=8).sample(BATCH)
    assert (Sampler(seed=8).sample(tensor) == expected).all()
    assert Sampler(seed=8).sample(tensor[2]) == expected[2]
    assert (Sampler(seed=8).sample(tensor.double()) == expected).all()
    strided = torch.zeros(12, 2, 1000)
    strided[:, -1] = tensor
    assert (Sampler(seed=8).sample(strided[:, -1]) == expected).all()
    assert (Sampler(seed=8).sample(tensor.T.contiguous().T) == expected).all()
    assert (Sampler(seed=8).sample(tensor.clone().requires_grad_()) == expected).all()
    for dtype in (torch.bfloat16, torch.float16):
        narrow = tensor.to(dtype)
        assert (Sampler(seed=8).sample(narrow) == Sampler(seed=8).sample(narrow.float())).all()
    negated = torch.complex(torch.zeros(1000), -tensor[2]).conj().imag  # its negation is still to be done
    assert negated.is_neg() and Sampler(seed=8).sample(negated) == expected[2]
    history = torch.tensor([1, 2, 3])
    penalised = Sampler(presence_penalty=2.0)
    assert (penalised.probs(tensor[0], history=history) == penalised.probs(BATCH[0], history=[1, 2, 3])).all()
    for wrong in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match="dtype"):
            Sampler().sample(tensor.to(wrong))
    with pytest.raises(ValueError, match="shape"):
        Sampler().sample(tensor[None])
    for unreadable in (tensor.to("meta"), torch.eye(3).to_sparse()):
        with pytest.raises(TypeError, match=r"logits are a Tensor that cannot be read \(.+\); expected"):
            Sampler().sample(unreadable)
