"""LLaMA in PyTorch.

Read in this order: `config`, `layers`, `cache`, `llama`; then `checkpoints`, `sampling`, `generation`, `evaluation`,
`training`.
"""

if __name__ == "model":  # the folder is shipped inside the package; see ARCHITECTURE.md
    raise ImportError("import this as bpe_llama.model, not as a global package named model")

from importlib import import_module

try:
    for _name in ("torch", "safetensors", "regex"):
        import_module(_name)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"bpe_llama.model needs {error.name}: pip install 'bpe_llama[model]'", name=error.name
    ) from error

from bpe_llama.model import families
from bpe_llama.model.adapters import lora
from bpe_llama.model.cache import KVCache
from bpe_llama.model.classification import LlamaForSequenceClassification, SequenceClassifierOutput
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.evaluation.perplexity import perplexity
from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.llama import CausalLMOutput, LlamaForCausalLM, LlamaModel
from bpe_llama.model.quantization import quantize

__all__ = [
    "CausalLMOutput",
    "KVCache",
    "LlamaConfig",
    "LlamaForCausalLM",
    "LlamaForSequenceClassification",
    "LlamaModel",
    "SequenceClassifierOutput",
    "TextGenerator",
    "families",
    "lora",
    "perplexity",
    "quantize",
]
