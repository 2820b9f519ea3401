"""Corpora: find and read texts (`files`, `hub`, `rows`, `bad_rows`); encode them (`token_files`, `encode_corpus`).

`shards` is the format of folders of ids, and `corpus` opens what was encoded. `worker_errors` raises in a program on
Ray what a worker raised.
"""
