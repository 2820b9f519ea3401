"""Benchmarks, one script a job; run them from the repository's root: ``python -m bench.encode``."""
