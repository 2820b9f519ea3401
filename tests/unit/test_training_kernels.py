"""Arguments of `_core`'s functions of training that do not fit: the error names the argument and its value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bpe_llama import _core

ROWS = np.ones((2, 4), np.float32)
ROW = np.ones(4, np.float32)
PAIR = np.ones(2, np.float32)


def arguments(name: str) -> dict[str, Any]:
    given: dict[str, dict[str, Any]] = {
        "rms_norm": {"x": ROWS, "weights": ROW, "eps": 1e-5, "out": ROWS, "scales": PAIR},
        "rms_norm_backward": {
            "gradient": ROWS,
            "x": ROWS,
            "weights": ROW,
            "scales": PAIR,
            "for_x": ROWS,
            "for_weights": ROW,
        },
        "swiglu": {"gate": ROW, "up": ROW, "out": ROW},
        "swiglu_backward": {"gradient": ROW, "gate": ROW, "up": ROW, "for_gate": ROW, "for_up": ROW},
        "rotate": {"x": ROWS, "cos": ROWS[:, :2], "sin": ROWS[:, :2], "head_dim": 4, "back": False, "out": ROWS},
        "cross_entropy": {"logits": ROWS, "labels": np.zeros(2, np.int64), "factors": PAIR, "losses": PAIR},
    }
    return {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in given[name].items()}


NAMES = ("rms_norm", "rms_norm_backward", "swiglu", "swiglu_backward", "rotate", "cross_entropy")
ARRAYS = [(name, key) for name in NAMES for key, value in arguments(name).items() if isinstance(value, np.ndarray)]


@pytest.mark.parametrize(("name", "key"), ARRAYS)
def test_an_array_that_is_not_contiguous_is_named(name: str, key: str) -> None:
    given = arguments(name)
    given[key] = np.repeat(given[key], 2, axis=-1)[..., ::2]
    with pytest.raises(ValueError, match=f"^{key} is not contiguous and aligned; expected C order"):
        getattr(_core, name)(**given)


@pytest.mark.parametrize(
    ("name", "read", "written"),
    [
        ("rms_norm", "x", "out"),
        ("rms_norm_backward", "gradient", "for_x"),
        ("swiglu", "up", "out"),
        ("swiglu_backward", "for_gate", "for_up"),
        ("rotate", "x", "out"),
        ("cross_entropy", "factors", "losses"),
    ],
)
def test_an_output_with_the_memory_of_another_argument_is_named(name: str, read: str, written: str) -> None:
    given = arguments(name)
    given[written] = given[read]
    with pytest.raises(ValueError, match=f"^{written} shares memory with another argument"):
        getattr(_core, name)(**given)


@pytest.mark.parametrize("name", NAMES)
def test_zero_threads_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="num_threads is 0; expected at least 1"):
        getattr(_core, name)(**arguments(name), num_threads=0)


@pytest.mark.parametrize("head_dim", [3, 1 << 62])
def test_a_row_that_is_no_whole_number_of_heads_is_named(head_dim: int) -> None:
    with pytest.raises(ValueError, match=rf"x has shape \[2, 4\]; expected whole heads of head_dim {head_dim}"):
        _core.rotate(**arguments("rotate") | {"head_dim": head_dim})


def test_a_norm_without_weights_is_refused() -> None:
    none, empty = np.ones(0, np.float32), np.ones((2, 0), np.float32)
    with pytest.raises(ValueError, match="0 weights; expected at least 1"):
        _core.rms_norm(empty, none, 1e-5, empty.copy(), PAIR.copy())
    with pytest.raises(ValueError, match="0 weights; expected at least 1"):
        _core.rms_norm_backward(empty, empty, none, PAIR, empty.copy(), none.copy())
