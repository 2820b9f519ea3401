"""The adapter to lm-evaluation-harness: its tasks on a model and tokenizer of this package.

Source: https://github.com/EleutherAI/lm-evaluation-harness, whose ``HFLM`` defines prompts, truncation and scoring.
"""

from __future__ import annotations

import hashlib
import itertools
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bpe_llama._arguments import integer
from bpe_llama.model.evaluation.scoring import Row, score_rows
from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.generation.text_request import has_token
from bpe_llama.model.sampling.params import GenerationOptions

try:
    from lm_eval import evaluator, utils
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import (
        handle_stop_sequences,
        has_bos_prefix,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
    from lm_eval.tasks import TaskManager
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise ImportError(f"tasks need {error.name}: pip install 'bpe_llama[eval]'") from error

DEFAULT_NEW_TOKENS = 256
"""The new tokens of a task that states no number, as in HFLM."""
_FEWSHOT_SEED = 1234
"""The harness's own."""


class LM(TemplateLM):  # type: ignore[misc]  # the harness publishes no types
    """A model of the harness: ``lm_eval.simple_evaluate(LM(generator), tasks=[...])``.

    Log-likelihoods, greedy texts and metrics are those of the harness's own ``HFLM`` on the same weights. As there,
    the text of a special token is that token, a context that is too long loses its beginning, and a continuation is
    all tokens of context and continuation, encoded together, behind those of the context alone.

    Args:
        generator: Model and tokenizer.
        batch_size: Rows of one forward pass, and sequences that are generated at once.

    Raises:
        ValueError: If ``batch_size`` is below 1.

    Example:
        >>> LM(TextGenerator(model, tokenizer)).loglikelihood(requests)  # doctest: +SKIP
        [(-3.2, False)]
    """

    def __init__(self, generator: TextGenerator, batch_size: int = 8) -> None:
        super().__init__()
        batch_size = integer("batch_size", batch_size, 1)
        self.generator, self.batch_size = generator, batch_size
        self.tokenizer = generator.tokenizer
        self.max_length = generator.model.config.context_length
        self._device = generator.model.device

    @property
    def eot_token_id(self) -> int:
        """Return the id that ends a text: the tokenizer's, or else the model's first."""
        ends = self.generator.end_ids if self.tokenizer.eos_id is None else (self.tokenizer.eos_id,)
        if not ends:
            raise ValueError("neither tokenizer nor model name an end-of-text id; the harness needs one")
        return ends[0]

    @property
    def prefix_token_id(self) -> int:
        """Return the id before a text without context: BOS, or else the end-of-text id."""
        return self.eot_token_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        """Return a hash of the tokenizer and its chat template, which names the harness's caches."""
        return f"bpe_llama_{hashlib.sha256(pickle.dumps(self.tokenizer)).hexdigest()[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text.

        Args:
            string: The text; special tokens that it spells are encoded as such.
            add_special_tokens: Whether to add what the tokenizer's files put around a text; None adds it unless the
                text begins with the token of `prefix_token_id`.
        """
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode([self.prefix_token_id]))
        ids = self.tokenizer(string, add_special_tokens=add_special_tokens, allowed_special="all", truncation=False)
        return list(ids["input_ids"])

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        rows = []
        for request, context, continuation in requests:
            if not context or not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"{request!r:.200}: {len(context):,} tokens of context and {len(continuation):,} of continuation; "
                    f"expected at least 1 and 1, and at most {self.max_length:,} of continuation"
                )
            ids = np.array((context + continuation)[-(self.max_length + 1) :], dtype=np.int64)
            rows.append(Row(ids, len(ids) - len(continuation)))
        total = sum(len(row.ids) - row.first for row in rows)
        with tqdm(total=total, desc="scoring tokens", disable=disable_tqdm or None) as bar:
            scores = score_rows(self.generator.model, rows, self.batch_size, bar.update)
        answers = [(-score.nats, score.greedy) for score in scores]
        for (request, _context, _continuation), answer in zip(requests, answers, strict=True):
            if request is not None:
                self.cache_hook.add_partial("loglikelihood", request, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text: every token is scored once, windows as the harness defines them."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            rolling = utils.get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            found = [(None, *utils.make_disjoint_window(window)) for window in rolling]
            windows += found
            counts.append(len(found))
        each = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        totals = [sum(nats for nats, _ in itertools.islice(each, count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the continuation of each context up to a stop string, greedy unless the task samples."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        texts = [""] * len(requests)
        for group in groups.values():
            found = self._generate([requests[index].args[0] for index in group], requests[group[0]].args[1])
            for index, text in zip(group, found, strict=True):
                texts[index] = text
                self.cache_hook.add_partial("generate_until", requests[index].args, text)
        return texts

    def _generate(self, contexts: list[str], given: dict[str, Any]) -> list[str]:
        options: dict[str, Any] = dict(normalize_gen_kwargs(given, DEFAULT_NEW_TOKENS))
        end = self.tokenizer.decode([self.eot_token_id])
        until = [stop for stop in handle_stop_sequences(options.pop("until"), eos=end) if stop]
        new_tokens = options.pop("max_gen_toks")
        if not options.pop("do_sample"):
            options = {name: value for name, value in options.items() if name not in ("top_k", "top_p", "min_p")}
            options["temperature"] = 0.0
        unknown = sorted(options.keys() - GenerationOptions.__dataclass_fields__.keys())
        if unknown:
            raise ValueError(f"generation_kwargs of the task hold {', '.join(unknown)}, which is not supported here")
        room = self.max_length - new_tokens
        if room < 1:
            raise ValueError(
                f"the task asks for {new_tokens:,} new tokens; expected fewer than the context of {self.max_length:,}"
            )
        prompts = [self.tok_encode(context)[-room:] for context in contexts]
        self.generator.generate_batch(
            prompts, slots=self.batch_size, stop=until or None, max_new_tokens=new_tokens, **options
        )
        return [self._answer(sequence.new_ids, until) for sequence in self.generator.sequences]

    def _answer(self, ids: list[int], until: list[str]) -> str:
        """Return the text of generated ids up to a stop string; ids that no token has decode to nothing."""
        try:
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
        except KeyError:  # a model may have more ids than its tokenizer
            known = [token_id for token_id in ids if has_token(self.tokenizer, token_id)]
            text = self.tokenizer.decode(known, skip_special_tokens=True)
        return str(postprocess_generated_text(text, until, None))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the text of a prompt, by the tokenizer's chat template."""
        rendered = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(rendered)


def find_tasks(names: Sequence[str]) -> Any:
    """Return tasks by their names in the harness, groups and tags among them, or by the paths of their YAML files.

    The data of a task is loaded too, from its local files or the hub. Paths in a YAML file's ``data_files`` are
    relative to the working folder.

    Raises:
        FileNotFoundError: If a YAML file is missing.
        ValueError: If the harness has no such task.
    """
    files = [name for name in names if name.endswith((".yaml", ".yml"))]
    missing = next((name for name in files if not Path(name).is_file()), None)
    if missing is not None:
        raise FileNotFoundError(f"{missing}: no such task file")
    manager = TaskManager(include_defaults=len(files) < len(names))
    for name in names:
        if name not in files and not manager.match_tasks([name]):
            raise ValueError(f"{name!r} is no task of lm-evaluation-harness; `lm-eval ls tasks` lists them")
    matched = [[name] if name in files else manager.match_tasks([name]) for name in names]
    return manager.load(list(dict.fromkeys(itertools.chain.from_iterable(matched))))


def evaluate_tasks(
    generator: TextGenerator,
    tasks: Any,
    *,
    batch_size: int = 8,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
) -> dict[str, Any]:
    """Return the results of tasks as the harness's ``evaluate`` gives them: ``results``, ``n-samples`` and so on.

    Args:
        generator: Model and tokenizer.
        tasks: As `find_tasks` returns them.
        batch_size: Rows of one forward pass.
        num_fewshot: Examples before each question; None for those of the task. A task that fixes 0 keeps it.
        limit: Evaluate only so many questions of each task.
        apply_chat_template: Render the questions by the tokenizer's chat template.

    Raises:
        ValueError: If ``batch_size`` is below 1, or a task needs something that is not supported; it is named.
    """
    for task in tasks["tasks"].values():
        fewshot = task.get_config("num_fewshot")
        if fewshot is None or (num_fewshot is not None and fewshot != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return evaluator.evaluate(
        LM(generator, batch_size),
        tasks,
        limit=limit,
        log_samples=False,
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=apply_chat_template,
    )


def describe_results(results: dict[str, Any]) -> str:
    """Return the results as the harness's table in Markdown."""
    return str(utils.make_table(results))
