"""Fine-tuning for other tasks than predicting text: the classification of texts."""
