"""What is run on a machine with a CUDA GPU: ``python -m bench.cuda.check`` runs all of it within nine minutes.

| module | prints |
|---|---|
| `check` | one line a step: tests, then the benchmarks below, each under its own time limit |
| `kernels` | registers, shared memory and spills of the Triton kernels, compiled without a GPU |
| `decode` | tokens a second by shape, weights, batch and prompt, against transformers and the copy bandwidth |
| `train` | the share of the matrix-product peak that a training step reaches |
| `engine` | requests that join and leave, with graphs and without |
"""
