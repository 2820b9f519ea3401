"""Every model family as GGUF: what we write and read, against llama.cpp, its converter and transformers."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from bench import data
from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.checkpoints.gguf_write import save_gguf
from bpe_llama.model.family import FAMILIES
from tests.parity.model_families.cases import MODEL_FAMILIES, SHAPE
from tests.parity.model_families.test_model_families import build, ids_of

gguf = pytest.importorskip("gguf", reason="the gguf package reads what we write")

pytestmark = pytest.mark.usefixtures("quiet_transformers")

VOCABULARY = SHAPE["vocab_size"]
TOKENIZER = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": [f"t{token:03}" for token in range(VOCABULARY)],
    "tokenizer.ggml.scores": [float(-token) for token in range(VOCABULARY)],
    "tokenizer.ggml.token_type": [1] * VOCABULARY,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_bos_token": False,
}
"""Of printable tokens, since llama.cpp gives no probabilities of a token that is half a character."""

NOT_COMPUTED = {
    ("qwen3", 1): "sliding_window",
    ("qwen3", 2): "attention_bias",
}
"""The cases that llama.cpp does not compute, and a field that the error names."""
STORED = [
    pytest.param((name, number), id=f"{name}-{number}")
    for name, family in MODEL_FAMILIES.items()
    for number in range(len(family.cases))
    if (name, number) not in NOT_COMPUTED
]
REFUSED = [pytest.param(*case, field, id="-".join(map(str, case))) for case, field in NOT_COMPUTED.items()]
linux = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the llama.cpp of PyPI is for Linux x86-64"
)


@pytest.fixture(params=STORED)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LlamaForCausalLM, Any]:
    return build(*request.param, tmp_path / "theirs")


def test_every_family_has_a_case_that_is_stored() -> None:
    stored = {case.values[0][0] for case in STORED}
    assert stored == {name for name in MODEL_FAMILIES if FAMILIES[name].gguf}


def test_a_model_round_trips(pair: tuple[LlamaForCausalLM, Any], tmp_path: Path) -> None:
    ours, theirs = pair
    save_gguf(ours, tmp_path / "m.gguf", tokenizer=TOKENIZER)
    again = LlamaForCausalLM.from_pretrained(tmp_path / "m.gguf", device="cpu")
    assert type(again.config) is type(ours.config)
    for name in ("windows", "rotated_layers", "query_scale", "norm_eps", "head_dim", "tie_word_embeddings"):
        assert getattr(again.config, name) == pytest.approx(getattr(ours.config, name)), name
    ids = ids_of(2, 60)
    assert_close(again(ids).logits, ours(ids).logits, atol=1e-5, rtol=0)
    assert_close(again(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "number", "field"), REFUSED)
def test_a_config_that_llama_cpp_does_not_compute_is_refused(
    name: str, number: int, field: str, tmp_path: Path
) -> None:
    ours, _ = build(name, number, tmp_path / "theirs")
    with pytest.raises(ValueError, match=rf"cannot express this config: .*{field}"):
        save_gguf(ours, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


SERVER = """
import json, os, sys, urllib.request
folder, path, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, folder)
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = path, 128, 1, 0
params.warmup = params.fit_params = False
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
rows = []
for ids in prompts:
    body = {"prompt": ids, "n_predict": 1, "n_probs": 4096, "ignore_eos": True, "cache_prompt": False, "temperature": 0}
    request = urllib.request.Request(server.listening_address + "/completion", json.dumps(body).encode())
    answer = json.load(urllib.request.urlopen(request))
    chosen = {one["id"]: one["logprob"] for one in answer["completion_probabilities"][0]["top_logprobs"]}
    rows.append([chosen[token] for token in sorted(chosen)])
print("\\n@" + json.dumps(rows), flush=True)
os._exit(0)
"""


def run(*arguments: str) -> str:
    """Return what a Python process of its own prints."""
    done = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@linux
def test_llama_cpp_has_the_same_probabilities(
    pair: tuple[LlamaForCausalLM, Any], real: Callable[..., Any], tmp_path: Path
) -> None:
    folder = real(data.llama_cpp_server)
    ours, _ = pair
    save_gguf(ours, tmp_path / "m.gguf", tokenizer=TOKENIZER)
    prompts = [ids_of(1, length)[0].tolist() for length in (3, 17, 60)]
    printed = run(SERVER, str(folder), str(tmp_path / "m.gguf"), json.dumps(prompts))
    rows = json.loads(printed.rpartition("\n@")[2])
    for prompt, row in zip(prompts, rows, strict=True):
        expected = ours(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        assert_close(torch.tensor(row), expected, atol=1e-4, rtol=0)


CONVERTER = """
import json, sys
from pathlib import Path
root, source, target, tokenizer = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
sys.path[:0] = [root, root + "/gguf-py"]
import conversion, gguf
from conversion.base import ModelBase, ModelType, get_model_architecture
tokens = {token: number for number, token in enumerate(tokenizer["tokenizer.ggml.tokens"])}
(source / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}, "added_tokens": []}))
architecture = get_model_architecture(ModelBase.load_hparams(source, False), ModelType.TEXT)
converter = conversion.get_model_class(architecture)(source, gguf.LlamaFileType.ALL_F32, target, eager=True)
converter = getattr(converter, "impl", converter)
converter.set_vocab = lambda: converter.gguf_writer.add_tokenizer_model("none")
converter.write()
"""


@pytest.mark.slow
@linux
def test_the_converters_file_is_read_and_equals_ours(
    pair: tuple[LlamaForCausalLM, Any], real: Callable[..., Any], tmp_path: Path
) -> None:
    ours, _ = pair
    folder = real(data.llama_cpp_converter)
    run(CONVERTER, str(folder), str(tmp_path / "theirs"), str(tmp_path / "t.gguf"), json.dumps(TOKENIZER))
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "t.gguf", device="cpu", dtype="float32")
    ids = ids_of(2, 60)
    assert_close(loaded(ids).logits, ours(ids).logits, atol=1e-5, rtol=0)
    save_gguf(ours, tmp_path / "m.gguf")
    expected, found = gguf.GGUFReader(tmp_path / "t.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
    architecture = expected.fields["general.architecture"].contents()
    for key, stated in expected.fields.items():
        if key.startswith(f"{architecture}."):
            assert found.fields[key].contents() == stated.contents(), key
            assert found.fields[key].types == stated.types, key
    tensors = {tensor.name: tensor for tensor in found.tensors}
    assert tensors.keys() == {tensor.name for tensor in expected.tensors}
    for tensor in expected.tensors:
        other = tensors[tensor.name]
        assert (other.tensor_type, other.shape.tolist()) == (tensor.tensor_type, tensor.shape.tolist()), tensor.name
        assert (other.data == tensor.data).all(), tensor.name
