"""Each preset keeps the same ids as its reference: transformers and llama.cpp themselves, Meta's algorithm rewritten.

llama.cpp's samplers are those in the library that the gpt4all package carries (2.8.2, of August 2024), called one by
one in the order of the default chain. The package is large, so no extra installs it; without it, only the test against
llama.cpp's definition runs.
"""

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bpe_llama import Sampler

torch = pytest.importorskip("torch", reason="needs torch, whose operators the references are made of")

RANDOM = np.random.default_rng(5)
ROWS = {
    "flat": RANDOM.normal(size=2000),
    "peaked": RANDOM.normal(size=2000) * 4,
    "tied": np.round(RANDOM.normal(size=500) * 3) / 2,
    "equal": np.zeros(16),
    "two values": np.where(RANDOM.random(300) < 0.2, 2.0, 0.0),
    "one finite": np.where(np.arange(50) == 17, 1.0, -np.inf),
    "one": np.zeros(1),
}
# No cumulative probability of these rows equals one of these, as the references add in float32. Equality has a test of
# its own.
MASSES = [0.1003, 0.3331, 0.5007, 0.9001, 0.9903]
ALL_ROWS = pytest.mark.parametrize("row", [pytest.param(row.astype(np.float32), id=name) for name, row in ROWS.items()])


def kept(row, **parameters):
    return np.flatnonzero(Sampler(**{"temperature": 1.0, "top_p": 1.0, **parameters}).probs(row)).tolist()


def warped(row, *warpers):
    scores = torch.from_numpy(row)[None]
    for warper in warpers:
        scores = warper(None, scores)
    return np.flatnonzero(torch.softmax(scores[0].double(), -1).numpy()).tolist()


def assert_same(row, got, expected):
    """Compare the logits of the ids: which of the tied ids are kept depends on torch's sort, which is not stable."""
    assert sorted(row[got]) == sorted(row[expected])
    if len(set(row)) == len(row):
        assert got == expected


@ALL_ROWS
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_transformers(row, temperature):
    process = pytest.importorskip("transformers.generation.logits_process", reason="needs transformers")
    heat = process.TemperatureLogitsWarper(temperature)
    common = {"preset": "transformers", "temperature": temperature}
    for k in (1, 3, 40, 400):
        expected = warped(row, heat, process.TopKLogitsWarper(k))
        assert kept(row, top_k=k, **common) == expected
        for p in MASSES:
            expected = warped(row, heat, process.TopKLogitsWarper(k), process.TopPLogitsWarper(p))
            assert_same(row, kept(row, top_k=k, top_p=p, **common), expected)
    for p in MASSES:
        top_p = process.TopPLogitsWarper(p)
        assert_same(row, kept(row, top_p=p, **common), warped(row, heat, top_p))
        assert kept(row, typical_p=p, **common) == warped(row, heat, process.TypicalLogitsWarper(p))
        for q in (0.0203, 0.3007):
            min_p = process.MinPLogitsWarper(q)
            assert kept(row, min_p=q, **common) == warped(row, heat, min_p)
            assert_same(row, kept(row, top_p=p, min_p=q, **common), warped(row, heat, top_p, min_p))


@pytest.mark.parametrize("seed", range(40))
def test_transformers_keeps_the_highest_ids_of_a_tie_at_top_p(seed):
    """Rows have at most 16 ids, for which torch's sort is stable."""
    process = pytest.importorskip("transformers.generation.logits_process", reason="needs transformers")
    from bpe_llama.model.sampling import filtered_probs

    random = np.random.default_rng(seed)
    row = np.round(random.normal(size=random.integers(2, 17)) * 3).astype(np.float32) / 2
    for p in (*MASSES, 0.25, 0.75):
        top_p, top_k = process.TopPLogitsWarper(p), process.TopKLogitsWarper(3)
        for warpers, options in (((top_p,), {}), ((top_k, top_p), {"top_k": 3})):
            expected = warped(row, *warpers)
            options = {"preset": "transformers", "temperature": 1.0, "top_p": p, **options}
            assert kept(row, **options) == expected
            assert np.flatnonzero(filtered_probs(torch.from_numpy(row), **options)).tolist() == expected
    chain = (process.TopPLogitsWarper(0.8), process.MinPLogitsWarper(0.1), process.TypicalLogitsWarper(0.7))
    options = {"preset": "transformers", "top_p": 0.8, "min_p": 0.1, "typical_p": 0.7}
    assert kept(row, **options) == warped(row, *chain)
    sampler = Sampler(temperature=1.0, **options)
    drawn = {sampler.sample(row, step=step) for step in range(200)}
    assert drawn <= set(warped(row, *chain))


def test_transformers_repetition_penalty():
    process = pytest.importorskip("transformers.generation.logits_process", reason="needs transformers")
    row = ROWS["flat"].astype(np.float32)
    history = [3, 5, 3, 1999]
    scores = process.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([history]), torch.from_numpy(row)[None])
    expected = torch.softmax(scores[0].double(), -1).numpy()
    probs = Sampler(1.0, 0, 1.0, repetition_penalty=1.3, preset="transformers").probs(row, history)
    np.testing.assert_allclose(probs, expected, rtol=1e-6)


def meta_kept(row, top_p, temperature):
    """Return the ids that Meta's reference keeps: in sorted order, the mass before each is at most p."""
    probs = torch.softmax(torch.from_numpy(row) / temperature, dim=-1)
    ordered, ids = torch.sort(probs, dim=-1, descending=True, stable=True)
    before = torch.cumsum(ordered, dim=-1) - ordered
    return sorted(ids[(before <= top_p) & (ordered > 0)].tolist())


@ALL_ROWS
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_meta(row, temperature):
    for p in MASSES:
        assert kept(row, top_p=p, temperature=temperature, preset="meta") == meta_kept(row, p, temperature)


def test_only_meta_keeps_one_more_id_if_the_mass_equals_p():
    row = np.zeros(4, dtype=np.float32)
    assert meta_kept(row, 0.5, 1.0) == [0, 1, 2]
    assert kept(row, top_p=0.5, preset="meta") == [0, 1, 2]
    assert kept(row, top_p=0.5) == [0, 1]


def llama_cpp_probs(row, *, top_k=0, typical_p=1.0, top_p=1.0, min_p=0.0, temperature=1.0):
    """Return the probabilities after the default chain, by definition: each filter renormalises what it receives."""
    ids = np.argsort(-row.astype(np.float64), kind="stable")
    ids = ids[row[ids] > -np.inf]
    if top_k > 0:
        ids = ids[:top_k]

    def softmax(logits):
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    if typical_p < 1:
        probs = softmax(row[ids].astype(np.float64))
        distance = np.abs(-np.log(probs) + (probs * np.log(probs)).sum())
        # Equal logits give equal distances up to rounding.
        order = np.lexsort((ids, np.round(distance, 12)))
        count = int((np.cumsum(probs[order]) <= typical_p * (1 + 1e-15)).sum()) + 1
        ids = np.sort(ids[order[:count]])
        ids = ids[np.argsort(-row[ids].astype(np.float64), kind="stable")]
    if top_p < 1:
        ids = ids[: int((np.cumsum(softmax(row[ids].astype(np.float64))) < top_p).sum()) + 1]
    if min_p > 0:
        ids = ids[row[ids] >= row[ids].max() + np.log(min_p)]
    probs = np.zeros(len(row))
    probs[ids] = softmax(row[ids].astype(np.float64) / temperature)
    return probs


@ALL_ROWS
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_llama_cpp(row, temperature):
    for parameters in (
        {"top_k": 40},
        {"top_p": 0.9001},
        {"min_p": 0.0503},
        {"top_k": 40, "top_p": 0.9503, "min_p": 0.0503},
        {"typical_p": 0.5007},
        {"top_k": 40, "typical_p": 0.7003, "top_p": 0.9001, "min_p": 0.1003},
    ):
        probs = Sampler(**{"top_p": 1.0, **parameters}, temperature=temperature, preset="llama_cpp").probs(row)
        np.testing.assert_allclose(probs, llama_cpp_probs(row, temperature=temperature, **parameters), rtol=1e-9)


class TokenData(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float)]


class TokenDataArray(ctypes.Structure):
    _fields_ = [("data", ctypes.POINTER(TokenData)), ("size", ctypes.c_size_t), ("sorted", ctypes.c_bool)]


@pytest.fixture(scope="module")
def llama_cpp() -> Callable[..., list[int]]:
    """Return a function that applies llama.cpp's samplers to a row, in the order given, and returns the ids kept."""
    found = importlib.util.find_spec("gpt4all")
    folders = found.submodule_search_locations or [] if found else []
    libraries = [path for folder in folders for path in Path(folder).glob("llmodel*/build/libllamamodel*-avxonly.so")]
    libraries = [path for path in libraries if "cuda" not in path.name]
    if not libraries:
        pytest.skip("needs llama.cpp's library: pip install gpt4all==2.8.2 (121 MB) on Linux")
    library = ctypes.CDLL(str(libraries[0]))

    def keep(row: np.ndarray, **steps: float) -> list[int]:
        tokens = (TokenData * len(row))(*(TokenData(id, float(logit), 0.0) for id, logit in enumerate(row)))
        array = TokenDataArray(tokens, len(row), False)
        for name, value in steps.items():
            number = ctypes.c_int32(int(value)) if name == "top_k" else ctypes.c_float(value)
            arguments = (None, ctypes.byref(array), number, ctypes.c_size_t(1))
            getattr(library, f"llama_sample_{name}")(*arguments[: 3 if name == "temp" else 4])
        return sorted(array.data[place].id for place in range(array.size) if array.data[place].logit > -np.inf)

    return keep


@ALL_ROWS
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_llama_cpp_itself(llama_cpp, row, temperature):
    common = {"preset": "llama_cpp", "temperature": temperature}
    for k in (1, 3, 40, 400):
        assert_same(row, kept(row, top_k=k, **common), llama_cpp(row, top_k=k, temp=temperature))
        for p in MASSES:
            expected = llama_cpp(row, top_k=k, typical=p, top_p=0.9001, min_p=0.0503, temp=temperature)
            got = kept(row, top_k=k, typical_p=p, top_p=0.9001, min_p=0.0503, **common)
            assert_same(row, got, expected)
    for p in MASSES:
        assert_same(row, kept(row, top_p=p, **common), llama_cpp(row, top_p=p, temp=temperature))
        assert_same(row, kept(row, min_p=p, **common), llama_cpp(row, min_p=p, temp=temperature))
        assert_same(row, kept(row, typical_p=p, **common), llama_cpp(row, typical=p, temp=temperature))


def test_unknown_presets_are_named():
    with pytest.raises(ValueError, match="preset must be 'exact', 'meta', 'transformers' or 'llama_cpp', got 'vllm'"):
        Sampler(preset="vllm")
