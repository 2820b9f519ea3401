"""An OpenAI-compatible HTTP server over the engine (`bpe-llama serve`).

| file | job |
|---|---|
| `scheduler` | one engine thread: queue, fairness, prefix cache, deadlines, cancellation, shutdown |
"""
