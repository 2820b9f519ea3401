"""Arguments of the model's functions, with values of every wrong type: a clear error, and never torch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama.model import KVCache, LlamaConfig, LlamaForCausalLM, lora, perplexity, training
from bpe_llama.model.evaluation import evaluate_text
from bpe_llama.model.generation.beam import beam_search
from bpe_llama.model.generation.speculative import ModelDraft, PromptLookupDraft, generate_speculative
from bpe_llama.model.quantization.quantize import bytes_saved
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.training import Example, TrainConfig
from tests.small_models import tiny_model
from tests.wrong_values import COMMON, RAISED, Long

WRONG: dict[str, Any] = {
    **COMMON,
    "0": 0,
    "signaling nan": Decimal("sNaN"),
    "fraction": Fraction(10**400, 3),
    "long": Long([1]),
    "list": [],
    "ids": [1],
    "mapping": {1: float("nan")},
    "array": np.zeros(2),
    "number of no dimension": torch.tensor(3),
    "negative": torch.tensor(-1),
    "tensor": torch.zeros(1, 3),
    "flag": torch.tensor([True]),
}


def calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Return functions with arguments that are right."""
    model, ids = tiny_model(), torch.tensor([[1, 5, 7]])
    tok = Tokenizer.train_from_iterator(["low lower lowest"] * 3, 262, progress=False)
    wide = tiny_model(vocab_size=262)
    few = TrainConfig(max_steps=1, sequence_length=8, batch_size=1, device="cpu")
    example, tokens = Example(np.array([1, 2, 3]), np.array([1, 2, 3])), np.arange(60, dtype=np.uint16)
    adapted = lora.add(copy.deepcopy(model), rank=2)
    config = {field.name: getattr(model.config, field.name) for field in fields(LlamaConfig) if field.init}
    options = {field.name: getattr(few, field.name) for field in fields(TrainConfig)}
    documents = {"attention_mask": torch.ones_like(ids), "document_ids": None, "num_items_in_batch": None}
    sampling = {field.name: getattr(GenerationOptions(), field.name) for field in fields(GenerationOptions)}
    return {
        "LlamaConfig": (LlamaConfig, config),
        "TrainConfig": (TrainConfig, options),
        "GenerationOptions": (GenerationOptions, sampling),
        "LlamaForCausalLM": (LlamaForCausalLM, dict(config=model.config, device=None, dtype=None, seed=0)),
        "KVCache": (KVCache, dict(config=model.config, batch_size=1, max_length=8, dtype=None, device=None)),
        "model": (
            model,
            dict(input_ids=ids, labels=None, position_ids=ids, logits_to_keep=1, past_key_values=None, **documents),
        ),
        "model.loss": (model.loss, dict(input_ids=ids, labels=ids, chunk_size=2, **documents)),
        "model.reset_parameters": (copy.deepcopy(model).reset_parameters, dict(seed=0)),
        "model.gradient_checkpointing_enable": (
            copy.deepcopy(model).gradient_checkpointing_enable,
            dict(enable=True, every=1),
        ),
        "model.resize_token_embeddings": (
            lambda **given: copy.deepcopy(model).resize_token_embeddings(**given),
            dict(new_num_tokens=70, pad_to_multiple_of=None, mean_resizing=True, pieces=None, seed=0),
        ),
        "beam_search": (
            beam_search,
            dict(model=model, prompt=[1, 2], options=GenerationOptions(max_new_tokens=3), num_beams=2)
            | dict(length_penalty=1.0, early_stopping=False, prefill_chunk=4, do_sample=False),
        ),
        "generate_speculative": (
            generate_speculative,
            dict(model=model, prompt=[1, 2], draft=None, num_speculative_tokens=2, max_new_tokens=3),
        ),
        "PromptLookupDraft": (PromptLookupDraft, dict(max_ngram=3, min_ngram=2)),
        "ModelDraft": (ModelDraft, dict(draft=model, model=model)),
        "perplexity": (perplexity, dict(model=model, ids=[1, 2, 3], window=3, stride=2)),
        "evaluate_text": (
            partial(evaluate_text, progress=False),
            dict(model=wide, tokenizer=tok, documents=["low lower"], window=8, stride=4, batch_size=2),
        ),
        "bytes_saved": (partial(bytes_saved, kind="int4"), dict(model=model, group_size=32)),
        "lora.add": (
            lambda model, **given: lora.add(copy.deepcopy(model) if model is adapted else model, **given),
            dict(model=adapted, name="other", rank=2, alpha=4.0, dropout=0.0, seed=0, trainable_token_indices=None),
        ),
        "lora.shared_layers": (lora.shared_layers, dict(model=adapted)),
        "lora.why_not_merge": (lora.why_not_merge, dict(model=adapted)),
        "evaluate": (training.evaluate, dict(model=model, tokens=tokens, window=8, batch_size=2, max_windows=2)),
        "evaluate_examples": (training.evaluate_examples, dict(model=model, examples=[example], batch_size=2)),
        "ExampleBatches": (training.ExampleBatches, dict(examples=[example], batch_size=2, seed=0)),
        "TokenBatches": (training.TokenBatches, dict(tokens=tokens, window=8, batch_size=2, vocab_size=64, seed=0)),
        "start_as_identity": (training.start_as_identity, dict(model=copy.deepcopy(model))),
        "token_pieces": (training.token_pieces, dict(old=tok, new=tok, num_embeddings=None)),
        "learning_rate_at": (training.learning_rate_at, dict(config=few, step=1, elapsed=0.0)),
        "distillation_loss": (
            training.distillation_loss,
            dict(teacher=model, temperature=2.0, alpha=0.5, chunk_size=None),
        ),
    }


@pytest.mark.filterwarnings("ignore")
def test_a_value_of_any_wrong_type_is_no_crash_and_no_error_of_torch() -> None:
    complaints = []
    for name, (function, arguments) in calls().items():
        function(**arguments)
        for argument in arguments:
            for kind, value in WRONG.items():
                try:
                    function(**(arguments | {argument: value}))
                except Exception as error:
                    if not isinstance(error, RAISED):
                        complaints.append(f"{name}({argument}={kind}) raised {error!r:.200}")
                    elif len(str(error)) > 5000:
                        complaints.append(f"{name}({argument}={kind}) repeated the value")
    assert not complaints, "\n".join(complaints)


def test_a_negative_number_of_logits_is_refused() -> None:
    """It dropped the first positions."""
    with pytest.raises(ValueError, match="logits_to_keep is -1; expected at least 0"):
        tiny_model()(torch.tensor([[1, 5, 7]]), logits_to_keep=-1)
