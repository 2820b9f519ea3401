"""Train a model on a token file.

    from bpe_llama.model import LlamaConfig, LlamaForCausalLM, training

    config = training.TrainConfig(max_steps=2000, learning_rate=3e-4)
    training.train(LlamaForCausalLM(LlamaConfig(...)), "tokens.npy", config, "run")

Read in this order:

| file | content |
|---|---|
| `config` | the options of a run, the learning-rate schedule |
| `data/` | token files, conversations and other rows as batches |
| `start`, `optimizer` | initial weights; AdamW, also for bfloat16 weights |
| `step`, `evaluate` | the loss of a micro-batch, the gradient norm; the held-out loss |
| `checkpoint`, `lock`, `interrupts`, `report` | atomic checkpoints, one run per folder, Ctrl-C, metrics and plot |
| `loop`, `finetune` | the training loop; fine-tuning on text files |
| `finetuning/` | training a classifier of texts |
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
