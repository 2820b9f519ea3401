"""Pictures of what a tokenizer and a model do, each a function that returns a `matplotlib.figure.Figure`.

The functions take arrays or tensors, and need ``pip install 'bpe_llama[plot]'``. ``figure.savefig("name.svg")`` writes
a figure; a notebook shows it after ``%matplotlib inline``.
"""

from bpe_llama.draw.attention import draw_attention
from bpe_llama.draw.experts import draw_expert_load
from bpe_llama.draw.merges import draw_merges
from bpe_llama.draw.numbers import draw_number_format
from bpe_llama.draw.rotation import draw_rotation

__all__ = ["draw_attention", "draw_expert_load", "draw_merges", "draw_number_format", "draw_rotation"]
