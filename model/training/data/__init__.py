"""Data as batches: token files and shards (`sources` opens them), examples, and any iterable."""
