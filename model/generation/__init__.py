"""From prompts to continuations: options, engine, `generate`, beam search, `TextGenerator`."""
