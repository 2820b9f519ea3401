"""What pytest leaves out where a package that only some platforms have is missing, and which signals tests rely on."""

import importlib.util
import signal

# A shell lets what it starts in the background ignore Ctrl-C, and the programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Triton comes with torch for CUDA; without it its kernels cannot be imported, not even for their docstrings.
_KERNELS = [
    "python/bpe_llama/model/sampling/kernels.py",
    "python/bpe_llama/model/sampling/on_cuda.py",
    "tests/model/interpreted_sampling.py",
]
collect_ignore = [] if importlib.util.find_spec("triton") else _KERNELS
