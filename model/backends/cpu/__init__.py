"""Decoding on the CPU."""
