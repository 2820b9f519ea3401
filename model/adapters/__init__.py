"""Adapters: what is trained beside frozen weights, in the files of the peft library.

`lora` holds the functions to use them. Read in this order: `config` (what ``adapter_config.json`` says and what of it
is refused), `layers` (what is computed), `files` (tensors, and whether they fit a model), `place` (adapters put beside
a model's modules), `merging` (written into the weights), `weighted` (sums of adapters).
"""
