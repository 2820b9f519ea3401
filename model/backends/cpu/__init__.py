"""The native CPU decoder: decoder.py runs a pass, dispatch.py says by which kernels."""
