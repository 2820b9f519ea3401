"""Pictures: what is drawn is what is given, and what cannot be drawn is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama.draw import draw_attention, draw_merges, draw_rotation
from bpe_llama.educational import EducationalTokenizer


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_merges_end_with_the_tokens_of_the_tokenizer():
    tok = Tokenizer.train_from_iterator(["low lower lowest 你好"], vocab_size=266, progress=False)
    axes = draw_merges(tok, "lower 你 $").axes[0]
    steps = [label.get_text() for label in axes.get_yticklabels()]
    last = [text.get_text() for text in axes.texts if text.get_position()[1] == len(steps) - 1]
    shown = [tok.decode_bytes([index]) for index in tok.encode("lower 你 $")]
    assert steps[0] == "bytes" and len(steps) > 3
    assert [word.replace("·", " ").replace(r"\$", "$") for word in last] == [
        token.decode() if token.decode("utf-8", "ignore") else token.hex() for token in shown
    ]
    twin = draw_merges(EducationalTokenizer.from_tokenizer(tok), "lower 你 $").axes[0]
    assert texts(twin) == texts(axes)


def test_columns_keep_their_bytes():
    tok = Tokenizer.train_from_iterator(["low lower lowest"], vocab_size=259, progress=False)
    axes = draw_merges(tok, "low new").axes[0]
    ends: dict[float, float] = {}
    for bar in axes.patches:
        ends[bar.get_y()] = max(ends.get(bar.get_y(), 0.0), bar.get_x() + bar.get_width())
    assert len(set(ends.values())) == 1


def test_text_that_cannot_be_drawn():
    tok = Tokenizer.train_from_iterator(["low"], vocab_size=257, progress=False)
    with pytest.raises(ValueError, match="the text is empty"):
        draw_merges(tok, "")


def test_a_figure_has_a_panel_for_each_head():
    weights = torch.eye(3).expand(5, 3, 3).clone().requires_grad_()
    figure = draw_attention(weights.bfloat16(), ["a", " b", "$c"])
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert titles == [f"head {head}" for head in range(5)]
    assert np.array_equal(figure.axes[4].images[0].get_array(), np.eye(3))
    assert [label.get_text() for label in figure.axes[4].get_yticklabels()] == ["a", "·b", r"\$c"]


def test_queries_and_keys_may_differ():
    axes = draw_attention([[0.25, 0.75, 0.0]], ["new"], keys=["x", "y", "new"], titles=["a step"]).axes[0]
    assert axes.get_title() == "a step"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "y", "new"]


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (np.eye(3), {}, r"weights have shape \(3, 3\); expected \(2, 2\)"),
        (np.zeros((0, 2, 2)), {}, "weights have shape"),
        (-np.eye(2), {}, "finite and at least 0"),
        (np.eye(2) * np.nan, {}, "finite and at least 0"),
        (np.eye(2), {"titles": ["a", "b"]}, "2 titles and 1 heads"),
    ],
)
def test_weights_that_cannot_be_drawn(weights, options, message):
    with pytest.raises(ValueError, match=message):
        draw_attention(weights, ["a", "b"], **options)


def test_the_cosines_of_all_pairs_are_drawn():
    frequencies = 10_000.0 ** (-torch.arange(0, 16, 2) / 16)
    figure = draw_rotation(frequencies, positions=20)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["pair 0", "pair 2", "pair 5", "pair 7"]
    expected = np.cos(frequencies.double().numpy()[:, None] * np.arange(20))
    np.testing.assert_array_equal(figure.axes[4].images[0].get_array(), expected)


@pytest.mark.parametrize(
    ("frequencies", "positions", "message"),
    [([], 8, r"shape \(0,\)"), ([[1.0]], 8, r"shape \(1, 1\)"), ([1.0], 0, "positions is 0; expected at least 1")],
)
def test_rotations_that_cannot_be_drawn(frequencies, positions, message):
    with pytest.raises(ValueError, match=message):
        draw_rotation(frequencies, positions)


def test_matplotlib_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"needs matplotlib: pip install 'bpe_llama\[plot\]'"):
        draw_rotation([1.0])
