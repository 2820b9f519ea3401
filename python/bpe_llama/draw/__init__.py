"""Pictures of what happens inside a language model; each function returns a matplotlib figure.

They take arrays or tensors and do not import torch. `pip install 'bpe-llama[plot]'` brings matplotlib.
"""

from bpe_llama.draw.experts import draw_expert_load
from bpe_llama.draw.numbers import draw_number_format

__all__ = ["draw_expert_load", "draw_number_format"]
