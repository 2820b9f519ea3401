"""The layers of the model: norm, rotary positions, attention, feed-forward blocks, the loss."""
