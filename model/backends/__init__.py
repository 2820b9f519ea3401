"""How one step of decoding is executed: native kernels on the CPU, Triton kernels and CUDA graphs on a GPU."""
