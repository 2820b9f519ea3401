"""OpenAI's API: requests as ids and options, answers as JSON and events.

| file | job |
|---|---|
| `schemas`, `options` | the fields of requests; as options of `TextGenerator` |
| `prompts` | conversations as ids |
| `tools`, `forced_calls` | tool calls in what a model writes; the grammar of an answer that must call |
| `answers` | log-probabilities, tool calls and event streams of answers |
| `errors` | errors in OpenAI's shape |
"""
