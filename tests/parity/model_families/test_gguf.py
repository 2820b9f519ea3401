"""Every model family as GGUF: what we write and read, against llama.cpp, its converter and transformers."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.testing import assert_close

from bench import data
from bench.llama_cpp import LlamaCpp
from bpe_llama.model import LlamaConfig, LlamaForCausalLM
from bpe_llama.model.checkpoints.gguf_write import content_of, save_gguf
from bpe_llama.model.family import FAMILIES
from tests.parity.model_families.cases import MODEL_FAMILIES, SHAPE
from tests.parity.model_families.cases_gguf import REFUSED, STORED
from tests.parity.model_families.test_model_families import ids_of
from tests.small_models import perturb_vectors

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


def flat(cases: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, case, id=f"{name}-{number}")
        for name, of_family in cases.items()
        for number, case in enumerate(of_family)
    ]


linux = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the llama.cpp of PyPI is for Linux x86-64"
)


def build(name: str, fields: dict[str, Any], folder: Path) -> tuple[LlamaForCausalLM, Any]:
    """Return our model and transformers', of which ours was loaded."""
    config = transformers.AutoConfig.for_model(name, **(SHAPE | fields))
    torch.manual_seed(1)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    perturb_vectors(theirs)
    for buffer_name, buffer in theirs.named_buffers():
        if buffer_name.endswith("e_score_correction_bias"):
            buffer.normal_(0.0, 0.3)
    theirs.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, device="cpu"), theirs


@pytest.fixture(params=[case.values for case in flat(STORED)], ids=[case.id for case in flat(STORED)], scope="module")
def folder_and_pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, tuple[LlamaForCausalLM, Any]]:
    with torch.no_grad():
        folder = tmp_path_factory.mktemp("theirs")
        return folder, build(*request.param, folder)


@pytest.fixture
def pair(folder_and_pair: tuple[Path, tuple[LlamaForCausalLM, Any]]) -> tuple[LlamaForCausalLM, Any]:
    return folder_and_pair[1]


def test_every_family_that_is_stored_is_tested() -> None:
    assert set(STORED) == set(REFUSED) | {"llama", "mixtral", "phi3"} == set(FAMILIES)


def test_a_model_round_trips(pair: tuple[LlamaForCausalLM, Any], tmp_path: Path) -> None:
    ours, theirs = pair
    save_gguf(ours, tmp_path / "m.gguf", tokenizer=TOKENIZER)
    again = LlamaForCausalLM.from_pretrained(tmp_path / "m.gguf", device="cpu")
    absent: dict[str, Any] = {"initializer_range": 0.02, "dtype": None, "eos_token_id": None}
    expected = ours.config
    if expected.model_type in ("mistral", "ministral"):  # llama.cpp calls both llama
        fields = {name: value for name, value in expected.to_dict().items() if name != "layer_types"}
        expected = LlamaConfig.from_dict(fields | {"model_type": "llama", "sliding_window": None})
    if ours.config.model_type == "deepseek_v3":
        absent["num_nextn_predict_layers"] = 0  # layers that neither file holds
    if ours.config.rope["rope_type"] == "longrope":  # of the factor the file holds what follows from it
        absent |= {"rope_parameters": {"rope_type": "default"}}
    assert again.config.replace(**absent) == expected.replace(**absent)
    ids = ids_of(2, 60)
    assert_close(again(ids).logits, ours(ids).logits, atol=1e-5, rtol=0)
    assert_close(again(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "fields"), [("mistral", {"sliding_window": None}), ("qwen3", {"head_dim": 128})])
def test_transformers_reads_what_we_write(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    # It reads no other architecture right, and of Qwen 3 only this width of heads.
    ours, _ = build(name, fields, tmp_path / "theirs")
    save_gguf(ours, tmp_path / "m.gguf", tokenizer=TOKENIZER)
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ids = ids_of(2, 50)
    assert_close(read(ids).logits, ours(ids).logits, atol=1e-4, rtol=0)


PUBLISHED = [
    pytest.param(name, fields, id=model)
    for name, family in MODEL_FAMILIES.items()
    for model, (fields, _) in family.published.items()
]
NOT_COMPUTED = {
    "DeepSeek-V2": "expert_group_count",
    "Moonlight-16B-A3B": "layer_norm_rms_epsilon",
    "Ministral-8B": "sliding_window",
}


@pytest.mark.parametrize(("name", "fields"), PUBLISHED)
def test_llama_cpp_computes_the_published_configs(
    name: str, fields: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    config = LlamaConfig.from_dict(fields | {"model_type": name})
    if config.num_local_experts and config.num_hidden_layers > 4:  # the first of them may be dense
        config = config.replace(num_hidden_layers=4)
    if refused := NOT_COMPUTED.get(request.node.callspec.id):
        with pytest.raises(ValueError, match=f"cannot express this config: .*{refused}"):
            content_of(LlamaForCausalLM(config, device="meta"))
        return
    metadata, tensors = content_of(LlamaForCausalLM(config, device="meta"))
    assert metadata and tensors


@pytest.mark.parametrize(("name", "case"), flat(REFUSED))
def test_a_config_that_llama_cpp_does_not_compute_is_refused(
    name: str, case: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    ours, _ = build(name, case[0], tmp_path / "theirs")
    with pytest.raises(ValueError, match=rf"cannot express this config: .*{case[1]}"):
        save_gguf(ours, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def by_llama_cpp(path: Path, prompts: list[list[int]]) -> list[list[float]]:
    """Return the log-probabilities of the token after each prompt."""
    rows = []
    with LlamaCpp(path, exact=True, context=128 * -(-max(map(len, prompts)) // 100)) as llama_cpp:
        for prompt in prompts:
            (answer,) = llama_cpp.complete(prompt, 1, n_probs=4096, ignore_eos=True)["completion_probabilities"]
            chosen = {one["id"]: one["logprob"] for one in answer["top_logprobs"]}
            rows.append([chosen[token] for token in sorted(chosen)])
    return rows


@pytest.mark.slow
@linux
def test_llama_cpp_has_the_same_probabilities(
    pair: tuple[LlamaForCausalLM, Any], real: Callable[..., Any], tmp_path: Path
) -> None:
    real(data.llama_cpp)
    ours, _ = pair
    save_gguf(ours, tmp_path / "m.gguf", tokenizer=TOKENIZER)
    config = ours.config
    lengths: Sequence[int] = (3, 17, 60)
    if config.rope["rope_type"] == "longrope":  # a context longer than the original makes llama.cpp take long factors
        lengths = [length for length in lengths if length > config.rope["original_max_position_embeddings"]]
    if config.model_type == "phi3":  # its window is in the file, and llama.cpp does not compute it
        lengths = [length for length in lengths if length <= (config.sliding_window or length)]
    if config.model_type == "llama4_text":  # chunks and temperatures change at 8,192 tokens
        lengths = (17, min(8_200, config.max_position_embeddings - 8))
    assert lengths
    prompts = [ids_of(1, length)[0].tolist() for length in lengths]
    for prompt, row in zip(prompts, by_llama_cpp(tmp_path / "m.gguf", prompts), strict=True):
        expected = ours(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        # llama.cpp looks the GELU of Gemma up in a table of float16.
        tolerance = 1e-2 if config.hidden_act != "silu" else 1e-4
        assert_close(torch.tensor(row), expected, atol=tolerance, rtol=0)


CONVERTER = """
import json, os, sys, traceback
from pathlib import Path
root = sys.argv[1]
sys.path[:0] = [root, root + "/gguf-py"]
import conversion, gguf
from conversion.base import ModelBase, ModelType, get_model_architecture
for line in sys.stdin:
    source, target, tokens = json.loads(line)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    Path(source, "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    architecture = get_model_architecture(ModelBase.load_hparams(Path(source), False), ModelType.TEXT)
    model_class = conversion.get_model_class(architecture)
    child = os.fork()  # modules are imported once for all conversions, so that no conversion sees the state of another
    if child:
        print("@", os.waitpid(child, 0)[1], flush=True)
        continue
    try:
        converter = model_class(Path(source), gguf.LlamaFileType.ALL_F32, Path(target), eager=True)
        converter = getattr(converter, "impl", converter)
        converter.set_vocab = lambda: converter.gguf_writer.add_tokenizer_model("none")
        converter.write()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def convert(
    real: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Path, Path], None]]:
    """Return ``convert(folder, path)``: llama.cpp's converter, in one process for all tests."""
    child = [sys.executable, "-c", CONVERTER, str(real(data.llama_cpp_converter))]
    log = tmp_path_factory.mktemp("converter") / "log"
    with log.open("w") as errors, subprocess.Popen(child, stdin=PIPE, stdout=PIPE, stderr=errors, text=True) as process:
        assert process.stdin and process.stdout
        requests, answers = process.stdin, process.stdout

        def call(folder: Path, path: Path) -> None:
            print(json.dumps([str(folder), str(path), TOKENIZER["tokenizer.ggml.tokens"]]), file=requests, flush=True)
            answer = next((line for line in answers if line.startswith("@")), None)
            assert answer == "@ 0\n", log.read_text()[-2000:]

        yield call
        process.kill()


def as_class(folder: Path, name: str) -> None:
    """Change the class that a folder says it is of."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [name]}))


@pytest.mark.slow
@linux
def test_the_text_model_of_mistral_small_3_is_read(convert: Callable[[Path, Path], None], tmp_path: Path) -> None:
    ours, _ = build("mistral", {"sliding_window": None, "head_dim": 24}, tmp_path / "theirs")
    as_class(tmp_path / "theirs", "Mistral3ForConditionalGeneration")
    convert(tmp_path / "theirs", tmp_path / "t.gguf")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "t.gguf", device="cpu", dtype="float32")
    assert gguf.GGUFReader(tmp_path / "t.gguf").fields["general.architecture"].contents() == "mistral3"
    assert_close(loaded(ids_of(2, 60)).logits, ours(ids_of(2, 60)).logits, atol=1e-5, rtol=0)


@pytest.mark.slow
@linux
def test_the_converters_file_is_read_and_equals_ours(
    folder_and_pair: tuple[Path, tuple[LlamaForCausalLM, Any]],
    convert: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    folder, (ours, _) = folder_and_pair
    if getattr(ours.config, "qk_layernorm", False):
        pytest.skip("the converter stops at StableLM's norms of queries and keys, which llama.cpp itself reads")
    if ours.config.model_type == "ministral":
        as_class(folder, "MistralForCausalLM")  # the converter has no name of its own for it
    convert(folder, tmp_path / "t.gguf")
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
        rounding = 1e-6 if tensor.name.startswith("rope_") else 0
        np.testing.assert_allclose(other.data, tensor.data, rtol=rounding, err_msg=tensor.name)
