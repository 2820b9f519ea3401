"""Train a model on a token file.

    from bpe_llama.model import LlamaConfig, LlamaForCausalLM, training

    config = training.TrainConfig(max_steps=2000, learning_rate=3e-4)
    training.train(LlamaForCausalLM(LlamaConfig(...)), "tokens.npy", config, "run")

Read in this order: `config` (settings, the learning rate over time), `data` (token file to batches),
`examples` (texts of which only parts are learned), `step` (the loss of a step, its gradient), `evaluate` (held-out
loss), `start` (initial weights), `optimizer` (AdamW), `rounding` (AdamW in bfloat16), `checkpoint` (folders
that appear whole), `lock` (one run a folder), `interrupts` (Ctrl-C, SIGTERM), `report` (metrics, curve, progress bar),
`loop`. For fine-tuning: `rows` (of JSON and Parquet files), `formats` (their fields), `conversations` (chats as
examples), `plain_text` (texts to a token file), `show` (prints an example), `finetune`.
"""

from bpe_llama.model.training.config import TrainConfig, learning_rate_at
from bpe_llama.model.training.data.batches import TokenBatches, open_tokens
from bpe_llama.model.training.data.examples import Example, ExampleBatches
from bpe_llama.model.training.data.formats import FORMATS
from bpe_llama.model.training.data.options import DataConfig
from bpe_llama.model.training.evaluate import evaluate, evaluate_examples
from bpe_llama.model.training.finetune import finetune
from bpe_llama.model.training.loop import TrainResult, train, train_on_examples
from bpe_llama.model.training.report import plot_loss, read_metrics
from bpe_llama.model.training.start import start_as_identity

__all__ = [
    "FORMATS",
    "DataConfig",
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
