//! Logits to ids.
