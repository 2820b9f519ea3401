"""Ray Data against one machine: the same counts, the same ids, workers lost or not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bpe_llama import Tokenizer, WordCounts

ray = pytest.importorskip("ray", reason="bpe_llama.scale needs Ray: pip install 'bpe_llama[scale]'")
# Ray's own warnings, about itself and its environment, are not ours to fix.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEXTS = [f"document number {i} says low lower lowest <|end|> " * (1 + i % 7) for i in range(200)] + [
    "",
    "日本語 émoji 😀",
]


@pytest.fixture(scope="module")
def dataset():
    import ray.data

    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray.data.from_items([{"text": text, "n": i} for i, text in enumerate(TEXTS)], override_num_blocks=7)
    ray.shutdown()


def test_counts_equal_one_machine(dataset):
    from bpe_llama import scale

    counts = scale.count_words(dataset, special_tokens=["<|end|>"])
    assert counts == WordCounts.from_iterator(TEXTS, special_tokens=["<|end|>"], progress=False)
    with pytest.raises(ValueError, match="no column 'body'"):
        scale.count_words(dataset, "body")
    with pytest.raises(ValueError, match="given twice"):
        scale.count_words(dataset, special_tokens=["a", "a"])


def test_a_killed_worker_changes_nothing(dataset, tmp_path):
    from bpe_llama import scale

    marker = str(tmp_path / "killed")

    def die_once(block):
        # The first worker to come here is gone for good; Ray runs its block again elsewhere.
        if not Path(marker).exists():
            Path(marker).touch()
            os._exit(1)
        return block

    counts = scale.count_words(dataset.map_batches(die_once, batch_format="pyarrow"))
    assert Path(marker).exists()
    assert counts == WordCounts.from_iterator(TEXTS, progress=False)


def test_ids_equal_one_machine(dataset):
    from bpe_llama import scale

    tok = Tokenizer.train_from_iterator(TEXTS, 300, progress=False)
    rows = scale.encode_dataset(dataset, tok).sort("n").take_all()
    assert [list(row["input_ids"]) for row in rows] == tok.encode_batch(TEXTS)
