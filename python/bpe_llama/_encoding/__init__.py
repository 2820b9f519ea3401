"""The encoding half of the tokenizer (`tokenizer`), and batches for a model (`batches`)."""
