"""Train a model on token files, shards, or any batches.

    from bpe_llama.model import LlamaConfig, LlamaForCausalLM, training

    config = training.TrainConfig(max_steps=2000, learning_rate=3e-4)
    training.train(LlamaForCausalLM(LlamaConfig(...)), "tokens.npy", config, "run")

Read in this order:

| file or folder | content |
|---|---|
| `config` | the options of a run; the learning rate of each step |
| `data/` | token files and shards, mixed and packed; examples and other data: all as batches |
| `initial`, `optimizers/` | initial weights, also of new tokens; AdamW and Muon |
| `step`, `held_out` | the loss of a micro-batch, the gradient norm; the held-out loss |
| `distillation` | the loss of a micro-batch that learns from a teacher |
| `loop`, `callbacks`, `parallel` | the training loop, what it calls; the ranks of `torchrun` |
| `process` | Ctrl-C and SIGTERM; memory that one step freed, kept for the next |
| `checkpoints/`, `report/` | atomic checkpoints, one run per folder; metrics, plot, progress bar |
| `run`, `finetuning/` | sets up a run; fine-tuning on text files, conversations and labelled texts |
"""

from bpe_llama._corpus.corpus import Corpus, open_corpus, open_tokens
from bpe_llama.model.training.callbacks import Callback, Run, TrainResult
from bpe_llama.model.training.config import TrainConfig, learning_rate_at
from bpe_llama.model.training.data.batches import Batch, Batches
from bpe_llama.model.training.data.examples import Example, ExampleBatches
from bpe_llama.model.training.data.iterable import BatchDataset, IterableBatches
from bpe_llama.model.training.data.rows import TokenBatches
from bpe_llama.model.training.distillation import distillation_loss
from bpe_llama.model.training.finetuning.finetune import finetune
from bpe_llama.model.training.finetuning.formats import FORMATS
from bpe_llama.model.training.finetuning.options import DataConfig, finetune_config
from bpe_llama.model.training.held_out import evaluate, evaluate_examples
from bpe_llama.model.training.initial import start_as_identity, token_pieces
from bpe_llama.model.training.loop import Trainer
from bpe_llama.model.training.report.metrics import plot_loss, read_metrics
from bpe_llama.model.training.run import RunOptions, train, train_on_examples
from bpe_llama.model.training.step import TensorBatch, batch_loss

__all__ = [
    "FORMATS",
    "Batch",
    "BatchDataset",
    "Batches",
    "Callback",
    "Corpus",
    "DataConfig",
    "Example",
    "ExampleBatches",
    "IterableBatches",
    "Run",
    "RunOptions",
    "TensorBatch",
    "TokenBatches",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "batch_loss",
    "distillation_loss",
    "evaluate",
    "evaluate_examples",
    "finetune",
    "finetune_config",
    "learning_rate_at",
    "open_corpus",
    "open_tokens",
    "plot_loss",
    "read_metrics",
    "start_as_identity",
    "token_pieces",
    "train",
    "train_on_examples",
]
