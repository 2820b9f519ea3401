"""Sample the next id from a row of logits.

:class:`Sampler` is the compiled class, so a call has no Python overhead. Its torch twin, for logits on a GPU, is
``bpe_llama.model.sampling``.

Example:
    >>> import numpy as np
    >>> from bpe_llama import Sampler
    >>> logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    >>> sampler = Sampler(temperature=1.0, top_p=0.75, seed=7)
    >>> sampler.probs(logits).round(3)
    array([0.625, 0.375, 0.   , 0.   ])
    >>> [sampler.sample(logits) for _ in range(8)]
    [0, 0, 1, 1, 1, 0, 0, 0]
"""

from bpe_llama._core import Sampler

__all__ = ["Sampler"]
