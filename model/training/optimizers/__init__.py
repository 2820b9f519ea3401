"""Optimizers: AdamW, also for bfloat16 weights."""
