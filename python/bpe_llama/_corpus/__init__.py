"""Corpora: find and read files of text (`files`, `bad_rows`), and encode them into files of ids (`token_files`)."""
