"""Programs of others that speak to OpenAI's API: litellm, and lm-evaluation-harness's ``local-completions``."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from bench import data
from tests.server.conftest import CORPUS

MESSAGES = [{"role": "user", "content": "the quick brown fox"}]
LITELLM = """
import json, sys
import litellm
url, messages = sys.argv[1], json.loads(sys.argv[2])
options = dict(model="openai/small", api_base=url, api_key="none", messages=messages, temperature=0, max_tokens=12)
whole = litellm.completion(**options)
chunks = litellm.completion(**options, stream=True)
pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
print(json.dumps([whole.choices[0].message.content, whole.usage.completion_tokens, "".join(pieces)]))
"""


def test_litellm(server, real):
    """In a process of its own: litellm is unpacked from the wheel that the vocabularies come from, not installed."""
    pytest.importorskip("openai", reason="litellm runs on OpenAI's client")
    pytest.importorskip("fastuuid", reason="litellm needs fastuuid")
    path = os.pathsep.join([str(real(data.litellm)), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", LITELLM, f"{server.url}/v1", json.dumps(MESSAGES)],
        env=os.environ | {"PYTHONPATH": path, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    ids = server.generator.tokenizer.apply_chat_template(MESSAGES)
    own = server.generator.generate(ids, temperature=0, max_new_tokens=12)
    assert json.loads(done.stdout.splitlines()[-1]) == [own, len(server.generator.last.new_ids), own]


@pytest.mark.filterwarnings("ignore:::(?!bpe_llama)")  # those of the harness and of datasets
def test_a_task_of_the_harness(server, tmp_path):
    """The same scores over HTTP, by ids with ``echo`` and ``logprobs``, as by our adapter in this process."""
    lm_eval = pytest.importorskip("lm_eval", reason="tasks need lm-evaluation-harness installed")
    pytest.importorskip("tenacity", reason="its clients of APIs need tenacity")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    from bpe_llama.model.evaluation.harness import LM

    generator = server.generator
    generator.tokenizer.save(tmp_path / "tokenizer.json")
    roles = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(roles | {"clean_up_tokenization_spaces": False}))
    questions = [
        {"question": f"{a} quick", "choices": [" brown", " lazy dog", " fox"], "answer": index % 3}
        for index, a in enumerate(["the", "a", "and", "until", CORPUS[0]])
    ]
    (tmp_path / "data.json").write_text("\n".join(map(json.dumps, questions)), "utf-8")
    task = {
        "task": "http_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.json")}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    path = tmp_path / "http_choice.yaml"
    path.write_text(yaml.safe_dump(task))
    over_http = LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model="small",
        tokenizer=str(tmp_path),
        tokenizer_backend="huggingface",
        max_length=512,
        batch_size=4,
    )
    in_process = LM(generator, batch_size=4)
    options = {"tasks": [str(path)], "bootstrap_iters": 0, "log_samples": True, "verbosity": "ERROR"}
    manager = TaskManager(include_defaults=False)
    found = [
        lm_eval.simple_evaluate(model, task_manager=manager, **options)["samples"]["http_choice"]
        for model in (over_http, in_process)
    ]
    for ours, theirs in zip(*found, strict=True):
        for (one,), (other,) in zip(ours["resps"], theirs["resps"], strict=True):
            assert float(one[0]) == pytest.approx(float(other[0]), rel=1e-4)
            assert str(one[1]) == str(other[1])
    given = [(text, {"until": ["\n"], "max_gen_toks": 6}) for text in ("the quick", CORPUS[0])]
    requests = [Instance("generate_until", {}, each, place) for place, each in enumerate(given)]
    assert over_http.generate_until(requests) == in_process.generate_until(requests)
