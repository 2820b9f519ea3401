"""Published vocabularies by name.

| file | content |
|---|---|
| `vocabularies.py` | the table: file, SHA-256, pattern, special tokens |
| `model_names.py` | OpenAI's models and the vocabulary of each |
| `cache.py` | a vocabulary's file, in a cache of this machine or downloaded |
"""
