//! Text to a vocabulary.
