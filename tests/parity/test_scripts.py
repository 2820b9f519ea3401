"""Scripts for other tools run with our tokenizer after a change of one line, on local data, with the same results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bpe_llama import Tokenizer
from tests.parity.families.published import FAMILIES, WORDS, build

transformers = pytest.importorskip("transformers", reason="the scripts run on transformers")
pytest.importorskip("datasets", reason="the scripts read their data through datasets")
pytestmark = [
    pytest.mark.usefixtures("quiet_transformers"),
    pytest.mark.filterwarnings("ignore:::(?!bpe_llama)"),  # those of the tools
]

THEIRS = "tokenizer = AutoTokenizer.from_pretrained(folder)"
OURS = "tokenizer = Tokenizer.from_file(folder).as_transformers()"
HEAD = f"""
from datasets import load_dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

{THEIRS}
tokenizer.pad_token = tokenizer.eos_token
rows = load_dataset("json", data_files=data, split="train", cache_dir=out)
set_seed(0)
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
options = dict(
    output_dir=out, max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1, use_cpu=True,
    bf16=False, report_to=[], disable_tqdm=True, save_strategy="no",
)
"""
FOOT = """
trainer.train()
trainer.save_model(out + "/model")
result = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
"""
TRAINER = """
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

tokenized = rows.map(
    lambda batch: tokenizer(batch["text"], truncation=True, max_length=24),
    batched=True,
    remove_columns=rows.column_names,
)
trainer = Trainer(
    model=model,
    args=TrainingArguments(**options),
    train_dataset=tokenized,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    processing_class=tokenizer,
)
"""
TRL = """
from trl import SFTConfig, SFTTrainer

tokenizer.chat_template = template
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(max_length=48, packing=True, assistant_only_loss=True, **options),
    train_dataset=rows.select_columns("messages"),
    processing_class=tokenizer,
)
"""
LM_EVAL = """
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

task = {
    "task": "local", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": data}, "cache_dir": out},
    "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_target": 0,
    "doc_to_choice": ["quick", "the brown 日本語"], "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=48, device="cpu")
found = simple_evaluate(lm, tasks=[task], task_manager=TaskManager(include_defaults=False), log_samples=True)
result = found["results"], [sample["resps"] for sample in found["samples"]["local"]]
"""
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}{% generation %}{{ m.content }}"
    "{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("needs", "script"),
    [("transformers", TRAINER + FOOT), ("trl", TRL + FOOT), ("lm_eval", LM_EVAL)],
    ids=["Trainer", "trl", "lm-eval"],
)
def test_one_line_changes(needs: str, script: str, tmp_path: Path) -> None:
    pytest.importorskip(needs)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    build(FAMILIES["llama 3"], folder)
    texts = [" ".join([*WORDS[number % 5 :], str(number)]) for number in range(12)]
    rows = [
        {
            "text": text,
            "messages": [{"role": "user", "content": text[:20]}, {"role": "assistant", "content": text[-12:]}],
        }
        for text in texts
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    results, saved = [], []
    for name, line in (("theirs", THEIRS), ("ours", OURS)):
        values: dict[str, Any] = {
            "folder": str(folder),
            "data": str(tmp_path / "rows.jsonl"),
            "out": str(tmp_path / name),
            "template": TEMPLATE,
            "Tokenizer": Tokenizer,
        }
        with torch.enable_grad():
            exec(HEAD.replace(THEIRS, line) + script, values)
        assert (type(values["tokenizer"]).__module__ == "bpe_llama._transformers") == (name == "ours")
        results.append(values["result"])
        if "trainer" in values:
            written = transformers.AutoTokenizer.from_pretrained(tmp_path / name / "model")
            saved.append((written(texts).data, written.special_tokens_map, written.chat_template))
    assert results[0] == results[1] and saved[:1] == saved[1:]
