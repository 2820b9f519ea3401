"""Optimizers: AdamW in three forms, Muon, a moving average of the weights, and their state as named tensors."""
