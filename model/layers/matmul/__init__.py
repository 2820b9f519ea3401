"""Matrix products of training: by the faster library, and of all experts at once."""
