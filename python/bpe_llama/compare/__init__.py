"""Compare tokenizers on texts: tokens, bytes a token, tokens a word, single-byte tokens, time.

| file | |
|---|---|
| `measure` | `compare`: the figures of each tokenizer on each text |
| `show` | a table for a terminal, a bar chart |
| `others` | tokenizers that only the `tokenizers` library opens: WordPiece, Unigram |
| `samples` | one sentence in ten languages |
"""

from bpe_llama.compare.measure import Comparison, Figures, compare
from bpe_llama.compare.others import OtherTokenizer, open_any
from bpe_llama.compare.samples import SAMPLES
from bpe_llama.compare.show import comparison_table, save_plot

__all__ = [
    "SAMPLES",
    "Comparison",
    "Figures",
    "OtherTokenizer",
    "compare",
    "comparison_table",
    "open_any",
    "save_plot",
]
