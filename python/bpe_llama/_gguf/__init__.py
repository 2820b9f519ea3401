"""GGUF files: the header, and the tokenizer in its metadata."""
