"""An OpenAI-compatible HTTP server over the engine (`bpe-llama serve`).

A request's way: `security` checks who asks, `api.schemas` checks the fields, `api.prompts` and `api.options` turn them
into ids and options, `generation` runs these on the `scheduler`, and an endpoint writes the answer or its events.

| file | job |
|---|---|
| `app`, `running` | the application; a socket, signals, an orderly end |
| `endpoints/` | chat, completions, responses, embeddings |
| `page` | the page in the browser, and what it shows of a model |
| `api/` | OpenAI's requests, answers and errors |
| `generation` | one request on the scheduler |
| `security`, `config`, `metrics` | keys and limits; settings; Prometheus |
| `scheduler/` | queue, deadlines, cancellation; one thread for all engines |
"""
