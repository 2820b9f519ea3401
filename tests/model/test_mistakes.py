"""What a user of models is told who makes a mistake; see tests/unit/test_mistakes.py."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpe_llama import Tokenizer
from bpe_llama._arguments import keywords_of
from bpe_llama.model import (
    KVCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    TextGenerator,
    lora,
    perplexity,
    training,
)
from bpe_llama.model.adapters.arguments import AdapterFields
from bpe_llama.model.adapters.config import AdapterConfig
from bpe_llama.model.checkpoints.gguf_write import save_gguf
from bpe_llama.model.evaluation.text import evaluate_text
from bpe_llama.model.families.deepseek_v2 import DeepseekV2Config
from bpe_llama.model.families.deepseek_v3 import DeepseekV3Config
from bpe_llama.model.families.llama4 import Llama4TextConfig
from bpe_llama.model.families.smollm3 import SmolLM3Config
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.generation.generate import generate
from bpe_llama.model.quantization.quantize import dequantize, quantize
from bpe_llama.model.sampling.keywords import GenerateKeywords, GenerationKeywords
from bpe_llama.model.sampling.params import SamplingParams
from bpe_llama.model.training import TrainConfig

SIZES: dict[str, Any] = {"vocab_size": 262, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}

MODEL = [
    ("LlamaConfig(vocab_size='262')", TypeError, "vocab_size is '262'; expected an integer"),
    ("LlamaConfig(num_hidden_layers=0)", ValueError, "num_hidden_layers is 0; expected at least 1"),
    (
        "LlamaConfig(id2label=ids)",
        ValueError,
        "id2label is tensor([[1, 5, 7]]); expected an object of numbers and names",
    ),
    ("LlamaConfig(initializer_range=ids)", TypeError, "initializer_range is tensor([[1, 5, 7]]); expected a number"),
    ("LlamaConfig(initializer_range='x')", TypeError, "initializer_range is 'x'; expected a number"),
    ("LlamaConfig(hidden_act=np.ones(2))", ValueError, "hidden_act is array([1., 1.]); model_type 'llama' has 'silu'"),
    ("LlamaConfig(problem_type=np.ones(2))", ValueError, "problem_type is array([1., 1.]); expected one of None, regr"),
    ("LlamaConfig(dtype=np.ones(2))", ValueError, "dtype is array([1., 1.]); expected one of float32, bfloat16"),
    ("LlamaConfig(model_type=[1])", ValueError, "model_type is [1]; expected one of cohere"),
    ("Llama4TextConfig(router_z_loss_coef=ids)", TypeError, "router_z_loss_coef is tensor([[1, 5, 7]]); expec"),
    ("Llama4TextConfig(no_rope_layers=ids)", ValueError, "no_rope_layers is tensor([[1, 5, 7]]); expected 0"),
    ("SmolLM3Config(no_rope_layers=[ids] * 36)", ValueError, "no_rope_layers is [tensor([[1, 5, 7]]), "),
    ("DeepseekV3Config(head_dim=ids)", TypeError, "head_dim is tensor([[1, 5, 7]]); expected an integer"),
    ("DeepseekV2Config(topk_method=ids)", ValueError, "topk_method is tensor([[1, 5, 7]]); expected one of"),
    (
        "model(ids, position_ids=torch.tensor([[0, 1, 2]] * 2))",
        ValueError,
        "position_ids has shape (2, 3); expected (1, 3) or (1, 3)",
    ),
    (
        "model(ids, torch.ones(2, 3))",
        ValueError,
        "attention_mask has shape (2, 3); expected (1, S), one row for each of input_ids",
    ),
    (
        "model(torch.cat([ids, ids]), torch.ones(1, 3))",
        ValueError,
        "attention_mask has shape (1, 3); expected (2, S), one row for each of input_ids",
    ),
    ("judge([[1, 5]])", TypeError, "input_ids must be a tensor, got [[1, 5]]"),
    ("judge(ids, [[1, 1, 1]])", TypeError, "attention_mask must be a tensor, got [[1, 1, 1]]"),
    ("judge(ids, labels=[1])", TypeError, "labels must be a tensor, got [1]"),
    ("judge.from_causal_lm(model, 'yes')", TypeError, "labels must be a list of names, got 'yes'"),
    ("judge.from_causal_lm('model', ['a', 'b'])", TypeError, "model must be a LlamaForCausalLM, got 'model'"),
    ("save_gguf(judge, folder / 'm.gguf')", TypeError, "model must be a LlamaForCausalLM, got LlamaForSequenceCl"),
    (
        "save_gguf(LlamaForCausalLM(config, dtype='float64'), folder / 'm.gguf')",
        ValueError,
        "dtype is 'float64', the model's own; expected auto, float32",
    ),
    ("LlamaConfig(layers=2)", TypeError, "unexpected keyword argument 'layers'"),
    (
        "LlamaForCausalLM('folder')",
        TypeError,
        "config must be a LlamaConfig; from_pretrained takes a path, got 'folder'",
    ),
    ("LlamaForCausalLM({'vocab_size': 262})", TypeError, "config must be a LlamaConfig; from_pretrained takes a path"),
    ("LlamaForCausalLM(config, dtype='float33')", ValueError, "dtype 'float33' is not one of 'auto', 'float32'"),
    (
        "LlamaForCausalLM(config, device='gpu')",
        ValueError,
        "device 'gpu' is not known to torch; expected 'auto', 'cpu'",
    ),
    ("LlamaForCausalLM(config, device=2**70)", ValueError, "device 1180591620717411303424 is not known to torch"),
    ("LlamaForCausalLM(config, dtype=np.ones(2))", ValueError, "dtype array([1., 1.]) is not one of 'auto', 'float32'"),
    (
        "LlamaForCausalLM(config, seed=2**70)",
        ValueError,
        "seed is 1180591620717411303424; expected -2**63 to 2**64 - 1",
    ),
    ("LlamaForCausalLM(config, seed='x')", TypeError, "seed must be an int, got 'x'"),
    ("LlamaForCausalLM.from_pretrained(5)", TypeError, "name must be a str or another path, got 5"),
    ("LlamaForCausalLM.from_pretrained(folder, torch_dtype='auto')", TypeError, "did you mean 'dtype'?"),
    ("LlamaForCausalLM.from_pretrained(folder, revison='v2')", TypeError, "'revison'; did you mean 'revision'?"),
    ("model([[1, 5]])", TypeError, "input_ids must be a tensor of ids, (batch, length), got [[1, 5]]"),
    ("model('low')", TypeError, "input_ids must be a tensor of ids, (batch, length), got 'low'"),
    ("model(ids.float())", TypeError, "input_ids has dtype torch.float32; expected integers"),
    ("model(ids.bool())", TypeError, "input_ids has dtype torch.bool; expected integers"),
    ("model.generate(ids.bool())", ValueError, "input_ids has dtype torch.bool; expected integers"),
    ("model.loss(ids.cfloat(), ids)", TypeError, "input_ids has dtype torch.complex64; expected integers"),
    ("model(ids[0])", ValueError, "input_ids has shape (3,); expected (batch, length)"),
    ("model(ids + 500)", ValueError, "input id 507 is outside the vocabulary of 262"),
    ("model(ids, labels=[1])", TypeError, "labels must be a tensor, (batch, length), got [1]"),
    ("model(ids, attention_mask=[1])", TypeError, "attention_mask must be a tensor, (batch, length), got [1]"),
    ("model.save_pretrained(5)", TypeError, "folder must be a str or another path, got 5"),
    ("model.resize_token_embeddings('5')", ValueError, "new_num_tokens is '5'; expected an integer"),
    ("model.set_attn_implementation('fast')", ValueError, "attention backend 'fast' is not one of sdpa, eager, flex"),
    ("model.gradient_checkpointing_enable(every=0)", ValueError, "every is 0; expected at least 1"),
    ("model(ids, position_ids=5)", TypeError, "position_ids must be a tensor, (batch, length), got 5"),
    ("model(ids, document_ids=5)", TypeError, "document_ids must be a tensor, (batch, length), got 5"),
    ("model(ids, past_key_values=5)", TypeError, "past_key_values must be a KVCache, got 5"),
    ("perplexity(model, 'text')", TypeError, "ids must be a list of ids, got 'text'"),
    ("perplexity(tok, [1, 2])", TypeError, "model must be a LlamaForCausalLM, got Tokenizer(vocab_size=262"),
    ("perplexity(model, [1, 2], window='x')", TypeError, "window must be an int, got 'x'"),
]
GENERATION = [
    ("model.generate([[1, 5]])", TypeError, "input_ids must be a torch.Tensor, got [[1, 5]]"),
    ("model.generate(ids, max_tokens=5)", TypeError, "'max_tokens'; did you mean 'max_new_tokens'?"),
    ("model.generate(ids, num_beams='2')", TypeError, "num_beams must be an int, got '2'"),
    ("model.generate(ids, num_beams=10**400)", ValueError, "num_beams is 100000"),
    ("model.generate(ids, num_return_sequences=10**400)", ValueError, "num_return_sequences is 100000"),
    ("generator.generate('low', num_beams=10**400)", ValueError, "num_beams is 100000"),
    ("generator.generate('low', n=10**400)", ValueError, "n is 100000"),
    ("generator.generate('low', n=2**62)", ValueError, "a cache of 4611686018427387904 slots"),
    ("generator.generate_batch(['low'], n=2**62)", ValueError, "n is 4611686018427387904; expected at most 1,048,576"),
    ("model.generate(ids, num_return_sequences=0)", ValueError, "num_return_sequences is 0; expected at least 1"),
    ("model.generate(ids, do_sample='yes')", TypeError, "do_sample must be True, False or None, got 'yes'"),
    ("model.generate(ids, num_beams=2, length_penalty='x')", TypeError, "length_penalty must be a number, got 'x'"),
    (
        "SamplingParams(penalty_scope=np.ones(2))",
        ValueError,
        "penalty_scope is array([1., 1.]); expected one of context",
    ),
    ("SamplingParams(mirostat=ids)", TypeError, "mirostat is tensor([[1, 5, 7]]); expected 0 (off), 1 or 2"),
    ("SamplingParams(filter_order=5)", TypeError, "filter_order is 5; expected a sequence of names"),
    ("SamplingParams(filter_order=[np.ones(2)])", ValueError, "filter_order names array([1., 1.]); expected some of"),
    ("generator.generate('low', filter_order=5)", TypeError, "filter_order is 5; expected a sequence of names"),
    ("generator.generate('low', mirostat=ids)", TypeError, "mirostat is tensor([[1, 5, 7]]); expected 0 (off), 1 or 2"),
    (
        "generator.generate('low', dry_multiplier=ids)",
        TypeError,
        "dry_multiplier is tensor([[1, 5, 7]]); expected a num",
    ),
    (
        "generator.generate('low', constraint=ids)",
        TypeError,
        "constraint is tensor([[1, 5, 7]]); expected a Constraint",
    ),
    ("generator.generate('low', eos_id=[ids])", TypeError, "eos_id must be an id, several, or None, got [tensor"),
    ("Engine('folder')", TypeError, "model must be a LlamaForCausalLM, got 'folder'"),
    ("Engine(model, slots=ids)", TypeError, "slots must be an int, got tensor([[1, 5, 7]])"),
    ("Engine(model, max_length=ids)", TypeError, "max_length must be an int, got tensor([[1, 5, 7]])"),
    ("Engine(model, prefill_chunk=1.5)", TypeError, "prefill_chunk must be an int, got 1.5"),
    ("Engine(model, cuda_graph=ids)", TypeError, "cuda_graph must be True or False, got tensor"),
    ("Engine(model, slots=0)", ValueError, "slots is 0; expected at least 1"),
    ("Engine(model, slots=10**400)", ValueError, "slots is 100000"),
    ("Engine(model, prefix_cache_bytes=10**400)", ValueError, "prefix_cache_bytes is 100000"),
    ("Engine(model, prefix_cache_bytes=-1)", ValueError, "prefix_cache_bytes is -1; expected at least 0"),
    ("Engine(model, prefix_cache_bytes=[1])", TypeError, "prefix_cache_bytes must be an int, got [1]"),
    ("KVCache('config')", TypeError, "config must be a LlamaConfig, got 'config'"),
    ("KVCache(config, 10**400)", ValueError, "batch_size is 100000"),
    ("KVCache(config, 0)", ValueError, "batch_size is 0; expected at least 1"),
    ("KVCache(config, 1, 10**400)", ValueError, "max_length is 100000"),
    ("KVCache(config, 'x')", TypeError, "batch_size must be an int, got 'x'"),
    ("model.generate(ids, cache=np.ones(2))", ValueError, "cache is array([1., 1.]); expected one of full, int8, ring"),
    ("model.generate(ids, cache='half')", ValueError, "cache is 'half'; expected one of full, int8, ring"),
    ("TextGenerator(tok, model)", TypeError, "model must be a LlamaForCausalLM, got Tokenizer(vocab_size=262"),
    ("TextGenerator(model, 'tokenizer.json')", TypeError, "tokenizer must be a Tokenizer, got 'tokenizer.json'"),
    ("TextGenerator(config, tok)", TypeError, "model must be a LlamaForCausalLM, got LlamaConfig("),
    ("generator.generate(5)", TypeError, "the prompt must be a str or a list of ids, got 5"),
    ("generator.generate(b'low')", TypeError, "the prompt must be a str or a list of ids, got b'low'"),
    (
        "generator.generate(['low', 'er'])",
        TypeError,
        "holds 'low' at index 0; expected ids, which are ints; generate_batch",
    ),
    ("generator.generate([1.5])", TypeError, "the prompt holds 1.5 at index 0; expected ids, which are ints"),
    ("generator.generate([999])", ValueError, "the prompt has input id 999, outside the vocabulary of 262"),
    ("generator.generate('a\\ud800b')", ValueError, "the prompt holds '\\ud800' at character 1, a lone surrogate"),
    ("generator.generate('low ' * 40)", ValueError, "the prompt has 41 ids, which leaves no room in a context of 32"),
    ("generator.generate('low', max_new_tokens='5')", TypeError, "max_new_tokens is '5'; expected an integer"),
    ("generator.generate('low', max_new_tokens=0)", ValueError, "max_new_tokens is 0; expected at least 1"),
    ("generator.generate('low', max_new_token=5)", TypeError, "'max_new_token'; did you mean 'max_new_tokens'?"),
    ("generator.generate('low', temperature='hot')", TypeError, "temperature is 'hot'; expected a number"),
    ("generator.generate('low', top_p=1.5)", ValueError, "top_p must be in (0, 1], got 1.5"),
    ("generator.generate('low', top_k=1.5)", TypeError, "top_k must be an int, got 1.5"),
    ("generator.generate('low', seed=iter(int, 1))", ValueError, "seed is an iterator of more than 1,048,576 items"),
    ("generator.generate('low', seed=1.5)", TypeError, "seed is 1.5; expected an integer, or None for a fresh one"),
    ("generator.generate('low', stop=5)", TypeError, "stop is 5; expected a string or several"),
    ("generator.generate('low', bos='yes')", TypeError, "bos must be True, False or None, got 'yes'"),
    ("generator.generate('low', reuse='yes')", TypeError, "reuse must be True, False or None, got 'yes'"),
    ("generator.generate('low', n='2')", TypeError, "n must be an int, got '2'"),
    ("generator.generate('low', num_beams=0)", ValueError, "num_beams is 0; expected at least 1"),
    ("generator.generate('low', bad_words=range(10**12))", TypeError, "bad_words is [0]; expected sequences of ids"),
    (
        "generator.generate('low', bad_words=['\\ud800'])",
        ValueError,
        "bad_words holds '\\ud800' at character 0, a lone",
    ),
    ("generator.generate('low', stop='\\ud800')", ValueError, "stop holds '\\ud800' at character 0, a lone surrogate"),
    ("generator.generate('low', filter_order=range(10**12))", ValueError, "filter_order names 0; expected some of"),
    ("generator.generate('low', bad_words='er')", TypeError, "bad_words is 'er'; expected a list of words"),
    (
        "generator.generate('low', bad_words=5)",
        TypeError,
        "bad_words must be a list of words, or of sequences of ids, got",
    ),
    ("generator.generate('low', eos_id='</s>')", TypeError, "eos_id must be an id, several, or None, got '</s>'"),
    ("generator.generate('low', logprobs='x')", TypeError, "logprobs must be True or False, got 'x'"),
    (
        "generator.generate('low', logits_processor=5)",
        TypeError,
        "logits_processor must be a function of ids and logits",
    ),
    ("generator.generate('low', json_schema=5)", TypeError, "json_schema is 5; expected an object, its text, or"),
    ("generator.generate('low', choice='ab')", TypeError, "choice is 'ab'; expected a list of strings"),
    (
        "generator.generate_batch('abc')",
        TypeError,
        "prompts must be a list of texts or of ids; generate takes one prompt",
    ),
    ("generator.generate_batch(5)", TypeError, "prompts must be a list of texts or of ids; generate takes one prompt"),
    ("generator.generate_batch([1, 2])", TypeError, "prompts[0] must be a str or a list of ids, got 1"),
    ("generator.generate_batch(['low', 'low ' * 40])", ValueError, "prompts[1] has 41 ids, which leaves no room in a"),
    ("generator.generate_batch(['low'], slots='2')", TypeError, "slots must be an int, got '2'"),
    ("generator.generate_batch(['low'], seed=[1, 2])", ValueError, "seed holds 2 numbers for 1 prompts; expected one"),
    ("list(generator.stream('low', n=2))", ValueError, "n is 2, but a stream is one answer"),
]
TRAINING = [
    ("evaluate_text(model, tok, 'low')", TypeError, "documents must be a list of texts, got 'low'"),
    ("evaluate_text(model, tok, [b'low'])", TypeError, "documents[0] must be a str, got b'low'"),
    ("evaluate_text(model, tok, ['low', 'a\\ud800'])", ValueError, "documents[1] holds '\\ud800' at character 1"),
    ("TrainConfig(max_steps='5')", TypeError, "max_steps must be an int, got '5'"),
    ("TrainConfig(max_steps=5.5)", TypeError, "max_steps must be an int, got 5.5"),
    ("TrainConfig(max_steps=0)", ValueError, "max_steps is 0, expected at least 1"),
    ("TrainConfig(batch_size=10**400)", ValueError, "batch_size is 100000"),
    ("TrainConfig(max_seconds=10**400)", ValueError, "max_seconds is 100000"),
    ("TrainConfig(schedule=np.ones(2))", ValueError, "schedule is array([1., 1.]), expected cosine"),
    ("TrainConfig(learning_rate='1e-3')", TypeError, "learning_rate must be a number, got '1e-3'"),
    ("TrainConfig(schedule='linear')", ValueError, "schedule is 'linear', expected cosine, warmup_stable_decay or"),
    ("TrainConfig(dtype=torch.float32)", ValueError, "dtype is torch.float32, expected auto, float32, bfloat16 or"),
    ("TrainConfig(learning_rate=np.ones(2))", TypeError, "learning_rate must be a number, got array([1., 1.])"),
    ("TrainConfig(betas=0.9)", TypeError, "betas must be two numbers, got 0.9"),
    ("TrainConfig(betas=('a', 'b'))", TypeError, "betas must be a number, got 'a'"),
    ("TrainConfig(compile='yes')", TypeError, "compile must be True or False, got 'yes'"),
    ("TrainConfig(document_mask=1)", TypeError, "document_mask must be True or False, got 1"),
    ("TrainConfig(max_seconds='1h')", TypeError, "max_seconds must be a number, got '1h'"),
    ("TrainConfig(device=5)", TypeError, "device must be a str, got 5"),
    ("TrainConfig(lr=1e-3)", TypeError, "unexpected keyword argument 'lr'"),
    ("training.train('ids.npy', model, few, folder)", TypeError, "model must be a model, got 'ids.npy'"),
    ("training.train(model, 'ids.npy', {'max_steps': 1}, folder)", TypeError, "config must be a TrainConfig, got {"),
    ("training.train(model, 'ids.npy', folder, few)", TypeError, "config must be a TrainConfig, got"),
    ("training.train(model, 'ids.npy', few, 5)", TypeError, "out must be a str or another path, got 5"),
    ("training.train(model, 5, few, folder)", TypeError, "data are a int; expected paths, Batches or an iterable of"),
    ("training.train(model, 'ids.npy', few, folder, epochs=2)", TypeError, "unexpected keyword argument 'epochs'"),
    ("training.train(model, 'ids.npy', few, folder, resum=True)", TypeError, "'resum'; did you mean 'resume'?"),
    (
        "training.train(model, 'ids.npy', few, folder, resume='yes')",
        TypeError,
        "resume must be True or False, got 'yes'",
    ),
    ("training.train(model, 'ids.npy', few, folder, callbacks=[print])", TypeError, "callbacks[0] must be a Callback"),
    (
        "training.train(model, 'ids.npy', few, folder, loss_fn='mse')",
        TypeError,
        "loss_fn must be a function, got 'mse'",
    ),
    (
        "training.train_on_examples(model, [[1, 2]], few, folder)",
        TypeError,
        "examples[0] must be an Example, got [1, 2]",
    ),
    ("training.finetune(tok, model, file, few, folder)", TypeError, "model must be a model, got Tokenizer("),
    ("training.finetune(model, 'tok', file, few, folder)", TypeError, "tokenizer must be a Tokenizer, got 'tok'"),
    ("training.finetune(model, tok, 5, few, folder)", TypeError, "paths must be a path, a pattern, or a list of them"),
    (
        "training.train(model, 'ids.npy', few, folder, eval_file=5)",
        TypeError,
        "eval_file must be a str or",
    ),
    ("training.train(model, [[ids]], few, folder, tokenizer='t')", TypeError, "tokenizer must be a Tokenizer, got 't'"),
    ("training.finetune(model, tok, file, few, folder, epochs=10**400)", ValueError, "epochs is 100000"),
    ("training.finetune(model, tok, file, few, folder, epochs='x')", TypeError, "epochs must be a number, got 'x'"),
    (
        "training.finetune(model, tok, file, few, folder, format='x')",
        ValueError,
        "format is 'x'; expected auto, messages",
    ),
]
ADAPTERS = [
    ("lora.add('model')", TypeError, "model must be a torch.nn.Module, got 'model'"),
    ("lora.add(model, rank='8')", TypeError, "rank must be an int, got '8'"),
    ("lora.add(model, rank=0)", ValueError, "rank is 0; expected at least 1"),
    ("lora.add(model, rank=4, r=8)", ValueError, "rank is 4 and r 8; expected one of them"),
    ("lora.add(model, seed=10**400)", ValueError, "seed is 100000"),
    ("lora.add(model, alpha='x')", TypeError, "alpha must be a number, got 'x'"),
    ("lora.add(model, dropout=1)", ValueError, "dropout must be at least 0 and less than 1, got 1"),
    (
        "lora.add(model, target_modules=5)",
        TypeError,
        "target_modules must be names of modules, a regex or 'all-linear'",
    ),
    ("lora.add(model, target_modules=['nope'])", ValueError, "no linear layer is named nope"),
    ("lora.add(model, name=5)", TypeError, "name must be a str, got 5"),
    ("lora.add(model, use_dora='yes')", ValueError, "use_dora is 'yes'; expected true or false"),
    ("lora.add(model, use_dor=True)", ValueError, "use_dor is True, which is not supported; expected it left out"),
    ("lora.load(folder, model)", TypeError, "model must be a torch.nn.Module, got "),
    ("lora.load(model, 5)", TypeError, "name must be a str or another path, got 5"),
    ("lora.save(model, folder, name='x')", ValueError, "no adapter is named 'x'; there are none"),
    ("lora.activate(model, ['default'])", TypeError, "a name of an adapter must be a str, got ['default']"),
    ("lora.merge('model')", TypeError, "model must be a torch.nn.Module, got 'model'"),
    ("quantize(model, 8)", TypeError, "kind must be a str, got 8"),
    ("quantize(model, 'int2')", ValueError, "kind is 'int2'; expected one of 'int8', 'int4', 'float8_e4m3'"),
    ("quantize('model', 'int8')", TypeError, "model must be a torch.nn.Module, got 'model'"),
    (
        "quantize(model, 'int4', group_size=7)",
        ValueError,
        "group_size is 7; expected 32, 64, 128 or 256, and a divisor",
    ),
    ("quantize(model, 'int8', skip='lm_head')", TypeError, "skip must be a list of names, got 'lm_head'"),
    ("dequantize(model, torch.int8)", ValueError, "dtype must be a dtype of floats, got torch.int8"),
    ("dequantize(model, 'float32')", TypeError, "dtype must be a torch.dtype, got 'float32'"),
]
MISTAKES = [*MODEL, *GENERATION, *TRAINING, *ADAPTERS]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the mistakes are made with."""
    folder: Path = tmp_path_factory.mktemp("mistakes")
    (folder / "corpus.txt").write_text("low lower lowest")
    tok = Tokenizer.train_from_iterator(
        ["low lower lowest"] * 3, vocab_size=262, special_tokens=["<s>"], progress=False
    )
    config = LlamaConfig(**SIZES, num_attention_heads=2, max_position_embeddings=32)
    model = LlamaForCausalLM(config)
    few = TrainConfig(max_steps=1, sequence_length=8, batch_size=1, device="cpu")
    return {
        **{"LlamaConfig": LlamaConfig, "LlamaForCausalLM": LlamaForCausalLM, "TextGenerator": TextGenerator},
        **{"DeepseekV3Config": DeepseekV3Config, "Llama4TextConfig": Llama4TextConfig, "SmolLM3Config": SmolLM3Config},
        **{
            "Engine": Engine,
            "KVCache": KVCache,
            "SamplingParams": SamplingParams,
            "DeepseekV2Config": DeepseekV2Config,
        },
        **{"lora": lora, "perplexity": perplexity, "quantize": quantize, "dequantize": dequantize, "torch": torch},
        **{"training": training, "TrainConfig": TrainConfig},
        **{"evaluate_text": evaluate_text, "save_gguf": save_gguf, "judge": LlamaForSequenceClassification(config)},
        "generator": TextGenerator(model, tok),
        "ids": torch.tensor([[1, 5, 7]]),
        "file": str(folder / "corpus.txt"),
        **{"tok": tok, "config": config, "model": model, "few": few, "folder": folder, "np": np},
    }


@pytest.mark.parametrize(("mistake", "error", "message"), MISTAKES, ids=[mistake for mistake, *_ in MISTAKES])
def test_a_mistake_is_said(names: dict[str, Any], mistake: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        eval(mistake, dict(names))
    assert type(caught.value) is error


def test_the_keywords_of_lora_are_the_fields_of_its_config() -> None:
    fields = set(AdapterConfig.__dataclass_fields__) - {"target_modules", "described"}
    assert keywords_of(AdapterFields) == fields


def test_the_keywords_of_generate_are_its_arguments() -> None:
    arguments = set(inspect.signature(generate).parameters) - {"model", "input_ids", "attention_mask", "options"}
    assert keywords_of(GenerateKeywords) == arguments | keywords_of(GenerationKeywords)


def test_mistakes_leave_the_model_as_it_was(names: dict[str, Any]) -> None:
    assert lora.names(names["model"]) == []
    assert names["generator"].generate("low", max_new_tokens=2, temperature=0) is not None


def test_numbers_of_numpy_are_no_mistake(names: dict[str, Any]) -> None:
    options = {
        "max_new_tokens": np.int64(2),
        "temperature": np.float32(0.5),
        "top_k": np.int32(3),
        "seed": np.int64(-7),
    }
    assert names["generator"].generate("low", **options) == names["generator"].generate(
        "low", max_new_tokens=2, temperature=0.5, top_k=3, seed=-7
    )
