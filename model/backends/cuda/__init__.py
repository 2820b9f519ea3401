"""A decoding step as a CUDA graph: graph.py captures it, dispatch.py says what it supports."""
