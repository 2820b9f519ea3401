"""LoRA adapters, in the files of the peft library. The functions for users are in `lora`.

| file | what it does |
|---|---|
| `arguments` | the arguments of the public functions, checked |
| `config` | reads ``adapter_config.json``; refuses fields that are not honoured |
| `layers` | computes the adapted layers |
| `files` | reads and writes an adapter's tensors, and checks them against a model |
| `inject` | adds adapters, loaded or new, to a model's modules |
| `merging` | merges adapters into the weights, and unmerges them |
| `weighted` | computes weighted sums of adapters |
| `lora` | the public functions |
"""
