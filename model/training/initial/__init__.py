"""Initial weights: of a new model, and of the tokens that a vocabulary adds."""
