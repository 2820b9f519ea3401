"""``BPE_LLAMA_SIMD``: each tier gives the same ids, draws and products; what cannot be obeyed is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bpe_llama._core import simd_tier, simd_tiers

SCRIPT = """
import hashlib
import numpy as np
from bpe_llama import Sampler, Tokenizer
from bpe_llama._core import Linear, simd_tier

text = "Hello, World! It's 12,345 o'clock; na\\u00efve caf\\u00e9s, \\u4f60\\u597d \\U0001f642\\n\\n  x = [1, 2]" * 40
tok = Tokenizer.train_from_iterator([text], 300, progress=False)
logits = np.random.default_rng(1).normal(size=(4, 5000)).astype(np.float32)
drawn = Sampler(temperature=0.8, top_p=0.9, top_k=900).sample(logits, step=3, seeds=[1, 2, 3, 4])
weights = np.random.default_rng(2).normal(size=(64, 96)).astype(np.float32)
out = np.zeros((3, 64), np.float32)
Linear([weights]).multiply(np.ones((3, 96), np.float32), out)
parts = np.array(tok.encode(text)).tobytes(), drawn.tobytes(), out.tobytes()
print(simd_tier(), hashlib.sha256(b"".join(parts)).hexdigest())
"""


def run(tier: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BPE_LLAMA_SIMD": tier}
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_every_tier_of_this_cpu_gives_the_same() -> None:
    found = {}
    for tier in simd_tiers():
        done = run(tier)
        assert done.returncode == 0, done.stderr
        name, found[tier] = done.stdout.split()
        assert name == tier
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("tier", ["sse9", "AVX2", "avx2 ", *sorted({"avx2", "neon", "amx"}.difference(simd_tiers()))])
def test_a_tier_that_cannot_be_used_is_refused(tier: str) -> None:
    done = run(tier)
    assert done.returncode == 1
    assert f'ValueError: BPE_LLAMA_SIMD is "{tier}", ' in done.stderr and "portable" in done.stderr


def test_without_the_variable_it_is_the_best() -> None:
    if not os.environ.get("BPE_LLAMA_SIMD"):
        assert simd_tier() == simd_tiers()[-1] and run("").stdout.split()[0] == simd_tiers()[-1]
