"""llama.cpp as a peer: a child process that generates from a GGUF file and reports the time per token."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from bench import data
from bpe_llama import Tokenizer
from bpe_llama._gguf.writer import tokenizer_metadata
from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.checkpoints.gguf_write import save_gguf

PROMPT = "Once upon a time there was a small village at the foot of a mountain, and in it lived a girl who could"
CHILD = """
import json, pathlib, sys, time
folder, path, threads = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, folder)
from gpt4all import GPT4All
model = GPT4All(path.name, model_path=path.parent, allow_download=False, device="cpu", n_threads=threads, n_ctx=512)
for line in sys.stdin:
    prompt, count = json.loads(line)
    times = []
    model.generate(prompt, max_tokens=count, temp=0.0, top_k=1, repeat_penalty=1.0, n_batch=64,
                   callback=lambda token, text: times.append(time.perf_counter()) or True)
    print("\\n" + json.dumps(times), flush=True)
"""


class LlamaCpp:
    """A model in llama.cpp of August 2024, the version in the package gpt4all.

    Raises:
        bench.fetch.DataUnavailable: If the package, or SmolLM2's tokenizer, cannot be fetched.
    """

    def __init__(self, model: LlamaForCausalLM, path: Path, threads: int, dtype: str = "q4_0") -> None:
        folder = data.llama_cpp()
        # This version does not know the pre-tokenizer smollm; another one does not change the speed of decoding.
        tokenizer = Tokenizer.from_gguf(data.smollm2_gguf())
        metadata = tokenizer_metadata(tokenizer) | {"tokenizer.ggml.pre": "falcon"}
        save_gguf(model, path, dtype=dtype, tokenizer=metadata)
        command = [sys.executable, "-c", CHILD, str(folder), str(path), str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            self.seconds_per_token(1)  # waits until the model is loaded
        except RuntimeError:
            self.close()
            raise

    def seconds_per_token(self, tokens: int) -> float:
        """Return the seconds per token after the first, without prefill.

        Raises:
            RuntimeError: If the process ended, or stopped its text early.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process has no pipes")
        self.process.send_signal(signal.SIGCONT)
        stdin.write(json.dumps([PROMPT, tokens + 1]) + "\n")
        stdin.flush()
        for line in stdout:
            if line.startswith("["):
                self.process.send_signal(signal.SIGSTOP)  # its idle threads spin
                times: list[float] = json.loads(line)
                if len(times) != tokens + 1:
                    raise RuntimeError(f"llama.cpp wrote {len(times)} tokens; expected {tokens + 1}")
                return (times[-1] - times[0]) / tokens
        raise RuntimeError(f"llama.cpp ended with exit code {self.process.wait()}")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
