"""Benchmarks, one script a job; run them from the repository's root: ``python -m bench.encode``.

``--simd avx2`` caps the CPU instructions of our kernels and of torch, as on a CPU with no more. Libraries read such
caps when they are imported, so this file reads the option before a script imports them.
"""

from __future__ import annotations

import os
import sys

_VARIABLES = ("BPE_LLAMA_SIMD", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
_VALUES = {  # the values of the variables, in their order, by the name of the tier
    "portable": ("portable", "default", "SSE41", "SSE4_2"),
    "avx2": ("avx2", "avx2", "AVX2", "AVX2"),
    "avx512": ("avx512", "avx512", "AVX512_CORE_VNNI", "AVX512"),
    "avx512_bf16": ("avx512_bf16", "avx512", "AVX512_CORE_BF16", "AVX512"),
}

for _place, _argument in enumerate(sys.argv):
    _option, _equals, _tier = _argument.partition("=")
    if _option == "--simd":
        _tier = _tier if _equals else "".join(sys.argv[_place + 1 : _place + 2])
        os.environ.update(zip(_VARIABLES, _VALUES.get(_tier, (_tier,)), strict=False))
