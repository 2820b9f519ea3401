"""An OpenAI-compatible HTTP server over the engine (`bpe-llama serve`).

A request's way: `security` checks who asks, `schemas` checks the fields, `prompts` and `options` turn them into ids and
options, `generation` runs these on the `scheduler`, and an endpoint writes the answer or its events.

| file | job |
|---|---|
| `app`, `running` | the application; a socket, signals, an orderly end |
| `endpoints/` | chat, completions, responses, embeddings |
| `schemas`, `options` | the fields of requests; as options of `TextGenerator` |
| `prompts`, `tools` | conversations as ids; tool calls in what a model writes |
| `generation`, `answers` | one request on the scheduler; log-probabilities and event streams |
| `security`, `config`, `errors`, `metrics` | keys and limits; settings; OpenAI's errors; Prometheus |
| `scheduler`, `engine_thread`, `updates` | queue, deadlines, cancellation; one thread for all engines |
"""
