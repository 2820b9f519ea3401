"""The picture of the load of experts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bpe_llama.draw import draw_expert_load


def test_counts_become_multiples_of_an_equal_share() -> None:
    figure = draw_expert_load(torch.tensor([[3, 1, 0, 4], [2, 2, 2, 2]]), every=10)
    (image,) = figure.axes[0].images
    np.testing.assert_allclose(np.asarray(image.get_array()), [[1.5, 1], [0.5, 1], [0, 1], [2, 1]])
    assert image.get_extent() == [-5.0, 15.0, 3.5, -0.5]
    assert figure.axes[-1].get_ylabel() == "load (1: an equal share)"


def test_several_runs_are_panels_of_one_scale() -> None:
    figure = draw_expert_load({"without": np.ones((5, 8)), "with": np.eye(8)}, axis="layer")
    panels = figure.axes[:2]
    assert [axes.get_title() for axes in panels] == ["without", "with"]
    assert {axes.images[0].get_clim() for axes in panels} == {(0.0, 2.0)}
    assert panels[1].get_xlabel() == "layer"


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ([1.0, 2.0], r"load has shape \(2,\); expected \(steps, experts\)"),
        ([[]], "expected .steps, experts."),
        ([[1, -1]], "a negative number or a row without tokens"),
        ([[1, 1], [0, 0]], "a row without tokens"),
        ({"mine": [[0, 0]]}, "load of 'mine' has"),
    ],
)
def test_mistakes_are_named(load: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_expert_load(load)  # type: ignore[arg-type]
