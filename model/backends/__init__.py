"""How a forward pass is executed: native kernels on the CPU, CUDA graphs and Triton kernels on a GPU.

``forward.py`` chooses between the CPU decoder and the modules of `llama.py`; ``cpu/dispatch.py`` and
``cuda/dispatch.py`` say what their kernels support.
"""
