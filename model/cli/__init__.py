"""The commands of `bpe-llama` that need a model."""
