"""Corpora: find and read texts (`files`, `hub`, `rows`, `bad_rows`), and encode them (`encode_documents`).

`token_files` writes one file of ids, `encode_corpus` a folder of shards in the format of `shards`; `corpus` opens both.
`worker_errors` raises in a program on Ray what a worker raised.
"""
