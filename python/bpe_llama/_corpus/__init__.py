"""Corpora: find and read texts (`files`, `hub`, `bad_rows`); encode them (`token_files`, `encode_corpus`, `shards`)."""
