"""Fine-tuning: reads conversations, completions, plain text and labelled texts, and trains on them."""
