"""Peak memory of loading a model, measured in one process per format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bpe_llama.model import LlamaConfig, LlamaForCausalLM
from bpe_llama.model.checkpoints.gguf_write import save_gguf

SHAPE = {"vocab_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 4, "initializer_range": 0.0}
LARGE = LlamaConfig(hidden_size=512, intermediate_size=1536, num_hidden_layers=12, **SHAPE)
SMALL = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=1, **SHAPE)
# A small model is loaded first, so that imports and thread stacks are not counted.
CHILD = """
import pathlib, re, sys
from bpe_llama.model import LlamaForCausalLM
def status(key):
    return int(re.search(key + r":\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
LlamaForCausalLM.from_pretrained(sys.argv[1], device="cpu")
pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = status("VmRSS")
model = LlamaForCausalLM.from_pretrained(sys.argv[2], device="cpu")
assert "sympy" not in sys.modules, "a meta tensor's operation imports it, which takes a second"
print((status("VmHWM") - before) * 1024, sum(weight.nbytes for weight in model.parameters()))
"""


def write(config: LlamaConfig, kind: str, folder: Path) -> Path:
    """Write a model in a format, and return the path to load."""
    model = LlamaForCausalLM(config)
    folder.mkdir(parents=True)
    if kind.startswith("gguf"):
        save_gguf(model, folder / "m.gguf", dtype=kind.removeprefix("gguf "))
        return folder / "m.gguf"
    if kind == "meta":
        write_meta(model, folder)
        return folder
    model.save_pretrained(folder)
    if kind == "sharded":
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = list(tensors)
        weight_map = {name: f"model-{place * 3 // len(names)}.safetensors" for place, name in enumerate(names)}
        for file in set(weight_map.values()):
            save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_meta(model: LlamaForCausalLM, folder: Path) -> None:
    """Write two shards in Meta's layout; all matrices are 0, so the order of rows does not matter."""
    config, state = model.config, model.state_dict()
    names = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in [
            ("attention.wq", "self_attn.q_proj"),
            ("attention.wk", "self_attn.k_proj"),
            ("attention.wv", "self_attn.v_proj"),
            ("attention.wo", "self_attn.o_proj"),
            ("feed_forward.w1", "mlp.gate_proj"),
            ("feed_forward.w2", "mlp.down_proj"),
            ("feed_forward.w3", "mlp.up_proj"),
            ("attention_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ]:
            names[f"layers.{layer}.{theirs}"] = f"model.layers.{layer}.{ours}"
    for shard in range(2):
        part = {}
        for theirs, ours in names.items():
            weight = state[f"{ours}.weight"]
            axis = 1 if theirs.endswith(("wo", "w2", "tok_embeddings")) else 0
            part[f"{theirs}.weight"] = weight if weight.ndim == 1 else weight.chunk(2, axis)[shard].clone()
        torch.save(part, folder / f"consolidated.{shard:02}.pth")
    params = {"dim": config.hidden_size, "n_layers": config.num_hidden_layers, "n_heads": 8, "n_kv_heads": 4}
    (folder / "params.json").write_text(json.dumps(params | {"norm_eps": 1e-6, "vocab_size": -1}))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process reset its own peak, VmHWM")
@pytest.mark.parametrize("kind", ["one file", "sharded", "meta", "gguf float32", "gguf q8_0"])
def test_loading_peaks_at_the_weights_and_a_fifth(tmp_path: Path, kind: str) -> None:
    small, large = write(SMALL, kind, tmp_path / "small"), write(LARGE, kind, tmp_path / "large")
    child = [sys.executable, "-c", CHILD, str(small), str(large)]
    done = subprocess.run(child, capture_output=True, text=True, timeout=300, check=True)
    peak, weights = map(int, done.stdout.split())
    assert weights > 150e6
    print(f"{kind}: {peak / weights:.3f} times the weights")
    assert 0.9 * weights < peak < 1.2 * weights
