"""tiktoken's public API over this package's tokenizer: ``from bpe_llama import tiktoken`` replaces ``import tiktoken``.

| file | content |
|---|---|
| `encoding.py` | `Encoding`: every method of `tiktoken.Encoding`, with the same ids, exceptions and pickles by name |
| `unstable.py` | the completions of `Encoding.encode_with_unstable` |
| `models.py` | encodings by the names of OpenAI's models |
| `arguments.py` | checks of arguments |

Differences:

- Ids must be below 2^21, and a special token cannot have the id of an ordinary token: both are refused.
- Where one special token begins like another, the longer one is found; tiktoken takes the one that a hash table lists
  first.
- Plugins of ``tiktoken_ext`` are not read.

Source: tiktoken 0.14, https://github.com/openai/tiktoken.

Examples:
    >>> from bpe_llama import tiktoken
    >>> tiktoken.encoding_name_for_model("gpt-4o")
    'o200k_base'
"""

from bpe_llama.tiktoken.encoding import Encoding, get_encoding, list_encoding_names
from bpe_llama.tiktoken.models import encoding_for_model, encoding_name_for_model

__all__ = ["Encoding", "encoding_for_model", "encoding_name_for_model", "get_encoding", "list_encoding_names"]

__version__ = "0.14.0"
"""The version of tiktoken that has this API."""
