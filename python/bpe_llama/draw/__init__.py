"""Pictures of what a tokenizer and a model do, each a function that returns a `matplotlib.figure.Figure`.

The functions take arrays or tensors, and need ``pip install 'bpe-llama[plot]'``. ``figure.savefig("name.svg")`` writes
a figure; a notebook shows it after ``%matplotlib inline``.
"""

from bpe_llama.draw.attention import draw_attention
from bpe_llama.draw.merges import draw_merges
from bpe_llama.draw.rotation import draw_rotation

__all__ = ["draw_attention", "draw_merges", "draw_rotation"]
