"""Training data: token files and their batches, files of conversations, completions and texts."""
