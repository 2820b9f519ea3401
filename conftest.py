"""What pytest leaves out where a package that only some platforms have is missing."""

import importlib.util

# Triton comes with torch for CUDA; without it its kernels cannot be imported, not even for their docstrings.
_KERNELS = [
    "python/bpe_llama/model/sampling/kernels.py",
    "python/bpe_llama/model/sampling/on_cuda.py",
    "tests/model/interpreted_kernels.py",
]
collect_ignore = [] if importlib.util.find_spec("triton") else _KERNELS
