"""Decoding on CUDA."""
