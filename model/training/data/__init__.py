"""Batches of tokens and of examples."""
