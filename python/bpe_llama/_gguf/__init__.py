"""GGUF files: the header, and the tokenizer in its metadata.

| file | job |
|---|---|
| `header` | read metadata and the places of tensors |
| `reader`, `writer` | metadata to a tokenizer and back |
| `pre_tokenizers` | the patterns of llama.cpp's pre-tokenizers |
| `token_types` | special tokens and end-of-generation ids as llama.cpp finds them |
"""
