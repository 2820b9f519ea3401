"""A page in the browser that shows what a tokenizer does with a text, and the endpoints behind it.

``bpe-llama inspect --open`` serves it with tokenizers alone, without torch; ``bpe-llama serve`` adds a chat and a view
of the model on the same page.

| file | job |
|---|---|
| `app` | routes and limits |
| `errors` | errors in OpenAI's shape, JSON responses |
| `tokens` | tokens of a text, merges of a pre-token, a vocabulary in figures |
| `library` | the tokenizers of the page, dropped ones included |
| `running` | serve on a socket until Ctrl-C |
| `static/` | HTML, CSS and JavaScript, as the browser gets them |
"""

from bpe_llama.playground.app import playground, playground_routes
from bpe_llama.playground.running import run_server

__all__ = ["playground", "playground_routes", "run_server"]
