"""LLaMA in PyTorch: `bpe_llama.model`."""

if __name__ == "model":  # the folder is shipped inside the package; see ARCHITECTURE.md
    raise ImportError("import this as bpe_llama.model, not as a global package named model")
