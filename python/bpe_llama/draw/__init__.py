"""Pictures of what a tokenizer and a model do, each a function that returns a `matplotlib.figure.Figure`.

The functions take arrays, or tensors on the CPU, and need ``pip install 'bpe-llama[plot]'``. In a notebook a figure
shows itself; elsewhere ``figure.savefig("name.svg")`` writes it.
"""

from bpe_llama.draw.attention import draw_attention
from bpe_llama.draw.merges import draw_merges
from bpe_llama.draw.rotation import draw_rotation

__all__ = ["draw_attention", "draw_merges", "draw_rotation"]
