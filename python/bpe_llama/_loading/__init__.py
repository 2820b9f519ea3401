"""Load a tokenizer: find its file, read its format, and apply what the files beside it say."""
