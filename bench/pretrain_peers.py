"""A step of each trainer of `bench.pretrain`, from the same weights, and a large product to compare the rates with."""

from __future__ import annotations

import importlib
import time
import zlib
from collections.abc import Callable
from typing import Any

Step = Callable[[Any], float]
"""Takes ids (B, T) and returns the loss."""


def load(name: str) -> None:
    """Import what a trainer needs, so that its memory does not count as the model's."""
    import torch

    modules = {"transformers": ["transformers.models.llama.modeling_llama"], "litgpt": ["lightning", "litgpt.pretrain"]}
    for module in ("bpe_llama.model.training", *modules.get(name, ())):
        importlib.import_module(module)
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    (weight @ weight).sum().backward()  # type: ignore[no-untyped-call]
    torch.optim.AdamW([weight], fused=True).step()  # imports the compiler
    torch.nn.utils.clip_grad_norm_([weight], 1.0)


def draw(model: Any, names: Callable[[str], list[str]] = lambda name: [name]) -> None:
    """Fill the model's weights, each by the seed that its name in a Hugging Face checkpoint gives.

    Args:
        model: A module.
        names: From the name of a weight to the names of the weights that it stacks.
    """
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0)
                continue
            for part, rows in zip(names(name), weight.split(stacked(model, name, weight)), strict=True):
                rows.normal_(0, 0.02, generator=torch.Generator().manual_seed(zlib.crc32(part.encode())))


def stacked(model: Any, name: str, weight: Any) -> list[int]:
    """Return the rows of the weights that a weight of litgpt stacks, or its own."""
    if not name.endswith("attn.qkv.weight"):
        return [len(weight)]
    config = model.config
    return [config.n_head * config.head_size, *[config.n_query_groups * config.head_size] * 2]


def ours(config: dict[str, Any], dtype: str) -> Step:
    """Return a step of `bpe_llama.model.training`, which keeps freed memory, as a run of `train` does."""
    import torch

    from bpe_llama.model import LlamaConfig, LlamaForCausalLM
    from bpe_llama.model.training.config import TrainConfig
    from bpe_llama.model.training.optimizers.state import optimizer_for
    from bpe_llama.model.training.process import keep_freed_memory
    from bpe_llama.model.training.step import TensorBatch, batch_loss, clip_gradients, gradient_norm

    keep_freed_memory()
    model = LlamaForCausalLM(LlamaConfig(**config)).train()
    draw(model)
    optimizer = optimizer_for(model, TrainConfig(learning_rate=1e-3))
    parameters = list(model.parameters())

    def step(ids: Any) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = batch_loss(model, TensorBatch(ids, ids), ids[:, 1:].numel())
        loss.backward()  # type: ignore[no-untyped-call]
        norm = gradient_norm(parameters)
        clip_gradients(parameters, 1.0, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def transformers_loop(config: dict[str, Any], dtype: str) -> Step:
    """Return a step of the loop that transformers' documentation shows, with torch's fused AdamW."""
    import torch
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, use_cache=False)).train()
    draw(model)
    optimizer = torch.optim.AdamW(groups(model), lr=1e-3, betas=(0.9, 0.95), fused=True)

    def step(ids: Any) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    return step


def litgpt_loop(config: dict[str, Any], dtype: str) -> Step:
    """Return a step of `litgpt.pretrain.fit`, with torch's fused AdamW, which litgpt takes on CUDA alone."""
    import lightning
    import litgpt
    import torch
    from litgpt.utils import chunked_cross_entropy

    shape = litgpt.Config(
        block_size=config["max_position_embeddings"],
        vocab_size=config["vocab_size"],
        padded_vocab_size=config["vocab_size"],
        n_layer=config["num_hidden_layers"],
        n_head=config["num_attention_heads"],
        n_query_groups=config["num_key_value_heads"],
        n_embd=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=config["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
    )
    fabric = lightning.Fabric(accelerator="cpu", precision="32-true" if dtype == "float32" else "bf16-mixed")
    model = litgpt.GPT(shape)
    model.lm_head.weight = model.transformer.wte.weight  # `tie_embeddings`
    draw(model, names_of_litgpt)
    model = fabric.setup(model)
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(groups(model), lr=1e-3, betas=(0.9, 0.95), fused=True))

    def step(ids: Any) -> float:
        loss = chunked_cross_entropy(model(ids[:, :-1].contiguous()), ids[:, 1:].contiguous())
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return step


def groups(model: Any) -> list[dict[str, Any]]:
    """Return the parameter groups of AdamW as ours are: matrices decay, norms do not."""
    weights = list(model.parameters())
    return [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": 0.1},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]


def names_of_litgpt(name: str) -> list[str]:
    """Return the names in a Hugging Face checkpoint of a weight of litgpt."""
    if name in ("lm_head.weight", "transformer.wte.weight"):
        return ["model.embed_tokens.weight"]
    layer = name.replace("transformer.h.", "model.layers.")
    if name.endswith("attn.qkv.weight"):
        return [layer.replace("attn.qkv", f"self_attn.{part}_proj") for part in "qkv"]
    mlp = {"mlp.fc_1": "mlp.gate_proj", "mlp.fc_2": "mlp.up_proj", "mlp.proj": "mlp.down_proj"}
    for theirs, hugging_face in {"attn.proj": "self_attn.o_proj", **mlp}.items():
        layer = layer.replace(theirs, hugging_face)
    return [layer]


PRODUCT_FLOPS = 2 * 1024**3


def product(config: dict[str, Any], dtype: str) -> Step:
    """Return a function that multiplies two large matrices by the library that is faster here."""
    import torch

    from bpe_llama.model.layers.matmul import products

    left, right = (torch.randn(1024, 1024, dtype=getattr(torch, dtype)) for _ in range(2))

    def seconds(multiply: Callable[[Any, Any], Any]) -> float:
        multiply(left, right)
        began = time.perf_counter()
        for _ in range(5):
            multiply(left, right)
        return time.perf_counter() - began

    libraries: list[Callable[[Any, Any], Any]] = [torch.mm, products.product]
    fastest = min(libraries, key=seconds)
    return lambda ids: float(fastest(left, right)[0, 0])


TRAINERS: dict[str, Callable[[dict[str, Any], str], Step]] = {
    "ours": ours,
    "transformers": transformers_loop,
    "litgpt": litgpt_loop,
    "product": product,
}
