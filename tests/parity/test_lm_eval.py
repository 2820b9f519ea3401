"""Tasks of lm-evaluation-harness: our adapter against its own HFLM, on the same weights and local task files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from bpe_llama import Tokenizer
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, TextGenerator

tokenizers = pytest.importorskip("tokenizers", reason="HFLM runs on transformers, which runs on tokenizers")
pytest.importorskip("lm_eval", reason="tasks need lm-evaluation-harness installed")
transformers = pytest.importorskip("transformers", reason="HFLM runs on transformers")
pytestmark = [
    pytest.mark.usefixtures("quiet_transformers"),
    pytest.mark.filterwarnings("ignore:::(?!bpe_llama)"),  # those of the harness and of datasets
]

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps", "until", "12"]
WORDS += ["o'clock", "été", "日本"]
CORPUS = [" ".join(random.Random(seed).choices(WORDS, k=14)) + ".\n" for seed in range(60)]
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
SPECIAL = ["<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
REQUESTS = [
    ("The quick", " brown fox"),
    ("The quick ", "brown"),  # the space belongs to the continuation
    ("", "the fox sleeps"),
    ("été", " 日本"),
    ("the dog", " and"),
    ("the dog", " until"),  # the same context, and one token
    ("<s>the dog", " sleeps"),  # BOS is not put before it twice
    (" ".join(WORDS * 8), " sleeps until 12"),  # longer than the context
]


def saved(folder: Path, bos: bool) -> Path:
    """Return a folder with a small model and its tokenizer, which puts BOS before a text, or nothing."""
    tokenizer = Tokenizer.train_from_iterator(CORPUS, vocab_size=340, special_tokens=SPECIAL, progress=False)
    config = LlamaConfig(
        vocab_size=340,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=48,
        initializer_range=0.3,
        bos_token_id=tokenizer.special_tokens["<s>"],
        eos_token_id=tokenizer.special_tokens["<|end|>"],
    )
    LlamaForCausalLM(config, seed=5).save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    state = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    if bos:
        state["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [tokenizer.special_tokens["<s>"]], "tokens": ["<s>"]}},
        }
    (folder / "tokenizer.json").write_text(json.dumps(state), "utf-8")
    roles = {"eos_token": "<|end|>", "chat_template": TEMPLATE} | ({"bos_token": "<s>"} if bos else {})
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **roles})
    )
    return folder


def sentencepiece_json(folder: Path) -> None:
    """Write a tokenizer.json as LLaMA 2's: spaces as ▁, one before a text, bytes for unknown characters, BOS."""
    bpe = tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    made = tokenizers.Tokenizer(bpe)
    spaces = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    made.normalizer = tokenizers.normalizers.Sequence(spaces)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=70, special_tokens=["<unk>", "<s>", "<|end|>"], limit_alphabet=20, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    state = json.loads(made.to_str())
    for byte in range(256):
        state["model"]["vocab"][f"<0x{byte:02X}>"] = len(state["model"]["vocab"])
    made = tokenizers.Tokenizer.from_str(json.dumps(state))
    parts = [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    made.decoder = tokenizers.decoders.Sequence([*parts, tokenizers.decoders.Strip(" ", 1, 0)])
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text()) | {"bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    roles = {"bos_token": "<s>", "eos_token": "<|end|>", "unk_token": "<unk>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **roles})
    )


@pytest.fixture(scope="module", params=["bos", "no-bos", "sentencepiece"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Our adapter, and theirs, on one folder."""
    from lm_eval.models.huggingface import HFLM

    from bpe_llama.model.evaluation.harness import LM

    folder = saved(tmp_path_factory.mktemp("saved"), request.param == "bos")
    if request.param == "sentencepiece":
        sentencepiece_json(folder)
    generator = TextGenerator(
        LlamaForCausalLM.from_pretrained(folder, dtype="float32", device="cpu"), Tokenizer.from_file(folder)
    )
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return LM(generator, batch_size=3), HFLM(pretrained=theirs, tokenizer=tokenizer, batch_size=3, max_length=48)


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


def test_log_likelihoods(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    found = ours.loglikelihood(instances("loglikelihood", REQUESTS), disable_tqdm=True)
    expected = theirs.loglikelihood(instances("loglikelihood", REQUESTS), disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4, rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    # The greedy continuation is recognised as such.
    (text,) = theirs.generate_until(instances("generate_until", [("the dog", {"max_gen_toks": 4})]), disable_tqdm=True)
    request = instances("loglikelihood", [("the dog", text)])
    ((nats, greedy),), ((their_nats, their_greedy),) = ours.loglikelihood(request), theirs.loglikelihood(request)
    assert nats == pytest.approx(their_nats, abs=1e-4) and greedy == their_greedy


def test_their_adapter_takes_our_tokenizer(both: tuple[Any, Any]) -> None:
    from lm_eval.models.huggingface import HFLM

    _, theirs = both
    tokenizer = Tokenizer.from_file(theirs.tokenizer.name_or_path).as_transformers()
    door = HFLM(pretrained=theirs.model, tokenizer=tokenizer, batch_size=3, max_length=48)
    for kind, given in (("loglikelihood", REQUESTS), ("generate_until", [("the fox", {"max_gen_toks": 5})])):
        found, expected = (getattr(side, kind)(instances(kind, given), disable_tqdm=True) for side in (door, theirs))
        assert found == expected


def test_rolling_log_likelihoods(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    texts = [(text,) for text in ["fox", CORPUS[0], "".join(CORPUS[:9]), "<s>a dog"]]  # the third one in windows
    found = ours.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    expected = theirs.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-4, rel=1e-5)


def test_greedy_text(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    prompts = ["the quick", CORPUS[3], " ".join(WORDS * 8), "été 日"]
    for options in (
        {"max_gen_toks": 12},
        {"max_gen_toks": 20, "until": ["\n", " a"]},
        {"max_new_tokens": 9, "until": "o"},
    ):
        requests = instances("generate_until", [(prompt, options) for prompt in prompts])
        found, expected = (side.generate_until(requests, disable_tqdm=True) for side in both)
        assert found == expected, options
    history = [{"role": "user", "content": "the fox"}]
    assert ours.apply_chat_template(history) == theirs.apply_chat_template(history)
    with pytest.raises(ValueError, match=r"hold.* penalty_alpha, which is not supported"):
        ours.generate_until(instances("generate_until", [("a", {"penalty_alpha": 0.5})]))
    with pytest.raises(ValueError, match="300 new tokens; expected fewer than the context of 48"):
        ours.generate_until(instances("generate_until", [("a", {"max_gen_toks": 300})]))


def task_files(folder: Path) -> list[str]:
    """Write a task of each kind with its data, and return the paths."""
    questions = [
        {
            "question": f"{a} quick",
            "choices": [" brown", " lazy dog", " fox"],
            "answer": index % 3,
            "text": CORPUS[index],
        }
        for index, a in enumerate(["the", "a", "and", "then", "over"])
    ]
    (folder / "data.json").write_text("\n".join(map(json.dumps, questions)), "utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "data.json")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "fewshot_split": "test",
    }
    tasks: list[dict[str, Any]] = [
        {
            "task": "local_choice",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        {
            "task": "local_text",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
        {
            "task": "local_answer",
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
            "metric_list": [{"metric": "exact_match"}],
        },
    ]
    for task in tasks:
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(common | task))
    return [str(folder / f"{task['task']}.yaml") for task in tasks]


def figures(results: dict[str, Any]) -> dict[str, float]:
    return {
        f"{task}, {name}": value
        for task, values in results["results"].items()
        for name, value in values.items()
        if isinstance(value, float)
    }


def test_metrics_of_local_tasks(both: tuple[Any, Any], tmp_path: Path) -> None:
    from lm_eval import evaluator

    from bpe_llama.model.evaluation import harness

    files = task_files(tmp_path)
    ours = figures(harness.evaluate_tasks(both[0].generator, harness.find_tasks(files), num_fewshot=1, batch_size=2))
    tasks = harness.find_tasks(files)
    for task in tasks["tasks"].values():
        task.set_config(key="num_fewshot", value=1)
        task.set_fewshot_seed(seed=1234)
    theirs = figures(evaluator.evaluate(both[1], tasks, log_samples=False))
    assert {"local_choice, acc,none", "local_text, bits_per_byte,none", "local_answer, exact_match,none"} <= ours.keys()
    assert ours == pytest.approx(theirs, rel=1e-4, nan_ok=True)


def test_unknown_tasks_and_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bpe_llama.model.evaluation import harness

    manager = harness.TaskManager(include_defaults=False)  # reading all of the harness's files takes seconds
    monkeypatch.setattr(harness, "TaskManager", lambda include_defaults: manager)

    with pytest.raises(FileNotFoundError, match=r"absent\.yaml: no such task file"):
        harness.find_tasks([str(tmp_path / "absent.yaml")])
    with pytest.raises(ValueError, match="'no_such_task' is no task"):
        harness.find_tasks(["no_such_task"])
