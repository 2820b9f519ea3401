"""Checkpoints of a run, written atomically, and the lock of its folder."""
