"""Train a model on a token file.

    from bpe_llama.model import LlamaConfig, LlamaForCausalLM, training

    config = training.TrainConfig(max_steps=2000, learning_rate=3e-4)
    training.train(LlamaForCausalLM(LlamaConfig(...)), "tokens.npy", config, "run")

In the order to read: `config` (what a run is told, the learning rate over time), `data` (token file to batches),
`examples` (texts of which only parts are learned), `evaluate` (the loss on held-out text), `start` (initial weights),
`optimizer` (AdamW), `checkpoint` (folders that appear whole), `report` (metrics, curve, progress bar), `loop`,
`conversations` (chats as examples), `finetune` (one's own text to a trained model).
"""

from bpe_llama.model.training.config import TrainConfig, learning_rate_at
from bpe_llama.model.training.data import TokenBatches, open_tokens
from bpe_llama.model.training.evaluate import evaluate, evaluate_examples
from bpe_llama.model.training.examples import Example, ExampleBatches
from bpe_llama.model.training.finetune import finetune
from bpe_llama.model.training.loop import TrainResult, train, train_on_examples
from bpe_llama.model.training.report import plot_loss, read_metrics
from bpe_llama.model.training.start import start_as_identity

__all__ = [
    "Example",
    "ExampleBatches",
    "TokenBatches",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "evaluate_examples",
    "finetune",
    "learning_rate_at",
    "open_tokens",
    "plot_loss",
    "read_metrics",
    "start_as_identity",
    "train",
    "train_on_examples",
]
