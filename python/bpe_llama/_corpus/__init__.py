"""Corpora: find and read files of text, and write files of token ids."""
