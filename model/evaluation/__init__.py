"""Evaluation: perplexity and bits per byte of text, tasks of lm-evaluation-harness, accuracy of a classifier.

| file | content |
|---|---|
| `scoring` | the negative log-likelihood of tokens, in batches |
| `perplexity`, `text` | perplexity of ids; perplexity and bits per byte of documents |
| `bits_per_byte` | the bytes of each token |
| `harness` | the adapter to lm-evaluation-harness |
| `classification` | accuracy and confusion matrix |
"""

from bpe_llama.model.evaluation.bits_per_byte import token_bytes
from bpe_llama.model.evaluation.classification import ClassifierScore, LabelledText, evaluate_classifier
from bpe_llama.model.evaluation.text import TextScore, evaluate_text

__all__ = ["ClassifierScore", "LabelledText", "TextScore", "evaluate_classifier", "evaluate_text", "token_bytes"]
