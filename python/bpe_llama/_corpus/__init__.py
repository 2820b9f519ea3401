"""Corpora: find and read texts (`files`, `hub`, `bad_rows`); encode them (`token_files`, `encode_corpus`, `shards`).

`worker_errors` raises in a program on Ray what a worker raised.
"""
