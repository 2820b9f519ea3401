"""Perplexity of token sequences."""
