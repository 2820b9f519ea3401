"""Load a tokenizer: find its file, read its format, and apply the files beside it.

| file | job |
|---|---|
| `load` | find a tokenizer's file, recognise its format, read it |
| `folder` | read a tokenizer.json or tokenizer.model and the files beside it; write tokenizer_config.json |
| `vocab_and_merges`, `tekken`, `tiktoken` | read one format each |
| `added_tokens`, `settings` | added tokens and defaults that the files name |
| `tokenizer_classes`, `components` | transformers' tokenizer classes, and the pipelines that they build |
| `rebuilding` | where such a class differs from the tokenizer.json |
"""
