"""Text that the model writes while it is trained, from fixed prompts."""

from __future__ import annotations

from collections.abc import Sequence

from bpe_llama._progress import note
from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.training.callbacks import Callback, Metrics, Run
from bpe_llama.model.training.report.metrics import MetricsFile
from bpe_llama.tokenizer import Tokenizer


class Samples(Callback):
    """Continues each prompt after every evaluation and appends the text to `samples.jsonl`.

    Sampling has a seed of its own, so training goes on as without samples. With `ema_decay` the averaged weights are
    sampled from. The texts are printed on stderr, too.
    """

    on_every_rank = True

    def __init__(self, tokenizer: Tokenizer, prompts: Sequence[str]) -> None:
        self.tokenizer, self.prompts = tokenizer, list(prompts)
        self._file: MetricsFile | None = None

    def on_start(self, run: Run) -> None:
        """Open the file; lines after the step of the checkpoint are dropped."""
        if run.is_main:
            self._file = MetricsFile(run.out / "samples.jsonl", run.step)

    def on_eval(self, run: Run, metrics: Metrics) -> None:
        """Generate and write a text for each prompt."""
        model = run.whole_model()
        if not isinstance(model, LlamaForCausalLM):
            raise TypeError(f"the model is a {type(model).__name__}; expected a LlamaForCausalLM, which writes text")
        if self._file is None:
            return
        was_training = model.training
        model.eval()
        try:
            generator = TextGenerator(model, self.tokenizer)
            for prompt in self.prompts:
                text = generator.generate(prompt, max_new_tokens=64, temperature=0.8, top_p=0.95, seed=0)
                self._file.write(step=run.step, prompt=prompt, text=text)
                note(f"step {run.step:,}: {prompt}{text}")
        finally:
            model.train(was_training)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
