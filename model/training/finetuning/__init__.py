"""Fine-tuning: reads conversations, completions and plain text, and trains on them."""
