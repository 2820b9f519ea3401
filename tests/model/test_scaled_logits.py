"""Scaled logits and embeddings: the loss without all logits, quantized heads, other sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from bpe_llama.model import KVCache, LlamaConfig, LlamaForCausalLM
from bpe_llama.model.backends.forward import decoder_for
from bpe_llama.model.layers.logits import Scale
from bpe_llama.model.layers.loss import chunked_next_token_loss
from bpe_llama.model.quantization.quantize import dequantize, quantize
from bpe_llama.model.training.step import TensorBatch, batch_score
from tests.small_models import TINY

IDS = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(1))


def granite(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    fields = {"model_type": "granite", "logits_scaling": 0.3, "embedding_multiplier": 3.0, "hidden_size": 64}
    fields["intermediate_size"] = 64
    return LlamaForCausalLM(LlamaConfig.from_dict(TINY | fields | changes), seed=seed).eval()


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-2}])
@pytest.mark.parametrize("chunk_size", [None, 7])
@torch.enable_grad()
def test_the_loss_and_gradients_are_those_of_scaled_logits(
    options: dict[str, float], chunk_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, head = torch.randn(2, 20, 8, generator=generator, requires_grad=True), nn.Linear(8, 64, bias=False)
    logits = functional.linear(hidden, head.weight)[:, :-1].flatten(0, 1) / 3
    labels = IDS[:, 1:].flatten()
    expected = functional.cross_entropy(logits, labels, label_smoothing=options.get("label_smoothing", 0.0))
    expected = expected + options.get("z_loss", 0.0) * logits.logsumexp(-1).square().mean()
    gradients = torch.autograd.grad(expected, [hidden, head.weight])

    def no_product(hidden: Tensor) -> Tensor:
        raise AssertionError("the head was called, which the loss without all logits does not need")

    monkeypatch.setattr(head, "forward", no_product)
    found = chunked_next_token_loss(hidden, head, IDS, chunk_size, finish=Scale(1 / 3), **options)
    assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, [hidden, head.weight]), gradients, strict=True):
        assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "granite", "logits_scaling": 3.0},
        {"model_type": "gemma2", "final_logit_softcapping": 0.5, "head_dim": 8, "query_pre_attn_scalar": 8},
        {"model_type": "cohere", "logit_scale": 0.25, "bos_token_id": 1, "eos_token_id": 2},
    ],
    ids=lambda fields: fields["model_type"],
)
def test_training_has_the_loss_of_the_models_logits(fields: dict[str, object]) -> None:
    model = LlamaForCausalLM(LlamaConfig.from_dict(TINY | {"initializer_range": 0.3} | fields), seed=0).eval()
    no_bytes = torch.arange(3)
    scored = batch_score(model, TensorBatch(IDS, IDS, without_bytes=no_bytes), 38)
    expected = model(IDS).logits[:, :-1].flatten(0, 1).log_softmax(-1).gather(1, IDS[:, 1:].reshape(-1, 1))
    assert_close(scored.loss, -expected.mean())
    assert_close(scored.text_nats, -expected[3:].sum())


@pytest.mark.parametrize("kind", [None, "int8", "float8_e4m3"])
@torch.no_grad()
def test_logits_of_quantized_heads_are_scaled(kind: str | None) -> None:
    model = granite()
    exact = model(IDS).logits
    if kind is not None:
        quantize(model, kind, skip=())
    found = model(IDS).logits
    assert (found - exact).abs().mean() < 0.3 * exact.abs().mean()  # unscaled logits are off by 0.7
    decoder = decoder_for(model)
    if decoder is not None:  # greedy ids do not show a scale
        last = decoder([IDS[0].tolist()], KVCache(model.config, 1, 32))
        assert_close(last[0], found[0, -1], atol=2e-3, rtol=2e-3)
    dequantize(model)
    assert_close(model(IDS).logits, found, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_scaled_embedding_and_head_are_resized(tied: bool) -> None:
    model = granite(tie_word_embeddings=tied)
    before = model(IDS).logits
    model.resize_token_embeddings(70, pieces={64: [5, 7]})
    assert model.lm_head.out_features == model.model.embed_tokens.num_embeddings == 70
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    after = model(IDS).logits
    assert_close(after[..., :64], before)
    assert_close(after[..., 64], before[..., [5, 7]].mean(-1), atol=1e-4, rtol=1e-4)
    assert model.generate(IDS[:1], max_new_tokens=3, temperature=0.0).shape == (1, 23)
