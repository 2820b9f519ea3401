"""Text that the model writes while it is trained, from fixed prompts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.training.callbacks import Callback
from bpe_llama.model.training.report.metrics import MetricsFile

if TYPE_CHECKING:
    from bpe_llama.model.training.loop import Trainer
    from bpe_llama.model.training.report.metrics import Metrics
    from bpe_llama.tokenizer import Tokenizer


class Samples(Callback):
    """Continues each prompt after every evaluation, prints the text and appends it to `samples.jsonl`.

    Sampling has a seed of its own, so training goes on as without samples.

    Args:
        tokenizer: The tokenizer of the model.
        prompts: The beginnings of the texts.
        max_new_tokens: Tokens to generate for each prompt.
        temperature: Of sampling; 0 takes the most probable token.
        shown: Whether to print the texts on stderr.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.8,
        shown: bool = True,
    ) -> None:
        self.tokenizer, self.prompts = tokenizer, list(prompts)
        self.max_new_tokens, self.temperature, self.shown = max_new_tokens, temperature, shown
        self._file: MetricsFile | None = None

    def on_start(self, run: Trainer) -> None:
        """Open the file; lines after the step of the checkpoint are dropped."""
        self._file = MetricsFile(run.out / "samples.jsonl", run.step)

    def on_eval(self, run: Trainer, metrics: Metrics) -> None:
        """Generate and write a text for each prompt."""
        if not isinstance(run.model, LlamaForCausalLM):
            raise TypeError(
                f"the model is a {type(run.model).__name__}; expected a LlamaForCausalLM, which writes text"
            )
        was_training = run.model.training
        run.model.eval()
        try:
            generator = TextGenerator(run.model, self.tokenizer)
            for prompt in self.prompts:
                text = generator.generate(
                    prompt, max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=0.95, seed=0
                )
                if self._file is not None:
                    self._file.write(step=run.step, prompt=prompt, text=text)
                if self.shown:
                    print(f"step {run.step:,}: {prompt}{text}", file=sys.stderr, flush=True)
        finally:
            run.model.train(was_training)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
