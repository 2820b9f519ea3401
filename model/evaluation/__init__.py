"""Evaluation: perplexity and bits per byte of text, tasks of lm-evaluation-harness, accuracy of a classifier.

| file | content |
|---|---|
| `scoring` | the negative log-likelihood of tokens, in batches |
| `perplexity`, `text` | perplexity of ids; perplexity and bits per byte of documents |
| `token_bytes` | the bytes of each token |
| `harness` | the adapter to lm-evaluation-harness |
| `classification` | accuracy and confusion matrix |
"""
