"""An OpenAI-compatible HTTP server over the engine (`bpe-llama serve`).

A request passes these files in order: `security` checks who asks, `api.schemas` checks the fields, `api.prompts` and
`api.options` turn the fields into ids and options, `generation` runs the ids on the `scheduler`, and an endpoint writes
the answer or its events.

| file | job |
|---|---|
| `app`, `running`, `connections` | the application; its socket, signals and shutdown; slow clients |
| `endpoints/` | chat, completions, responses, embeddings |
| `page` | the page in the browser, and the endpoints that describe a model |
| `api/` | OpenAI's requests, answers and errors |
| `generation` | one request on the scheduler |
| `security`, `config`, `metrics` | keys and limits; settings; Prometheus |
| `scheduler/` | queue, deadlines, cancellation; one thread for all engines |
"""
