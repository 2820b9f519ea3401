"""What pytest leaves out where a package that only some platforms have is missing, and what all tests rely on."""

import gc
import importlib.util
import os
import random
import signal
import sys

import pytest

# A shell lets what it starts in the background ignore Ctrl-C, and the programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A name that is no path is looked up on the Hugging Face Hub: by tests only in a cache, or on a server of their own.
os.environ["HF_HUB_OFFLINE"] = "1"

# Triton comes with torch for CUDA; without it its kernels cannot be imported, not even for their docstrings.
_KERNELS = [
    *(f"python/bpe_llama/model/sampling/{name}.py" for name in ("kernels", "on_cuda")),
    *(f"python/bpe_llama/model/quantization/{name}.py" for name in ("triton_kernels", "triton_matmul")),
    *(f"python/bpe_llama/model/backends/cuda/{name}.py" for name in ("triton_kernels", "triton_step", "wide_layers")),
    *(f"tests/model/{name}.py" for name in ("sampling/interpreted_sampling", "backends/interpreted_triton_step")),
]
collect_ignore = [] if importlib.util.find_spec("triton") else _KERNELS
if importlib.util.find_spec("lm_eval") is None:
    collect_ignore += ["python/bpe_llama/model/evaluation/harness.py"]
if importlib.util.find_spec("regex") is None:
    collect_ignore += ["python/bpe_llama/educational.py"]


def pytest_collection_finish() -> None:
    """Leave the million objects of all tests and modules out of garbage collection, which takes 0.4 s for them."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let what a test draws depend on itself alone, not on the tests that its worker ran before."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


if importlib.util.find_spec("hypothesis"):
    import hypothesis

    # On a busy machine an example may take longer than 200 ms. In CI hypothesis has no limit by itself.
    hypothesis.settings.register_profile("no limit", deadline=None)
    hypothesis.settings.load_profile("no limit")
