"""llama.cpp in a process of its own, which completes prompts with a GGUF file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import data
from bpe_llama import Tokenizer
from bpe_llama._gguf.writer import tokenizer_metadata
from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.checkpoints.gguf_write import save_gguf

PROMPT = "Once upon a time there was a small village at the foot of a mountain, and in it lived a girl who could"
CHILD = """
import json, sys, urllib.request
folder, path, threads, context, exact = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), bool(sys.argv[5])
sys.path.insert(0, folder)
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = path, context, 1, 0
params.warmup = params.fit_params = False
if exact:
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
for body in sys.stdin:
    request = urllib.request.Request(server.listening_address + "/completion", body.encode())
    print("@" + urllib.request.urlopen(request).read().decode(), flush=True)
"""


class LlamaCpp:
    """A model in llama.cpp, of the version in `bench.data.llama_cpp`, on Linux x86-64.

    Args:
        path: A GGUF file.
        threads: Of the products.
        exact: Keep keys and values in float32 and compute attention by its definition.
        context: Tokens that the cache holds.

    Raises:
        bench.fetch.DataUnavailable: If llama.cpp cannot be fetched.
        RuntimeError: If the process ends, as it does if it cannot load the file.
    """

    def __init__(self, path: Path, threads: int = 1, *, exact: bool = False, context: int = 512) -> None:
        numbers = (str(threads), str(context), "exact" * exact)
        command = [sys.executable, "-c", CHILD, str(data.llama_cpp()), str(path), *numbers]
        self._log = path.with_suffix(".log").open("w+b")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def complete(self, prompt: str | list[int], tokens: int, **options: Any) -> dict[str, Any]:
        """Return the server's answer to a greedy completion of a text or of ids.

        Args:
            prompt: The prompt.
            tokens: Generated at most.
            options: Others of llama.cpp's ``/completion``.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process has no pipes")
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": False} | options
        self.process.send_signal(signal.SIGCONT)
        try:
            stdin.write(json.dumps(body) + "\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # the process ended, as its output says
        for line in stdout:
            if line.startswith("@"):
                self.process.send_signal(signal.SIGSTOP)  # idle threads may spin
                answer: dict[str, Any] = json.loads(line[1:])
                return answer
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 2000))
        raise RuntimeError(f"llama.cpp ended: {self.process.wait()}; {self._log.read().decode(errors='replace')}")

    def seconds_per_token(self, tokens: int) -> float:
        """Return the seconds per token after the first, without prefill.

        Raises:
            RuntimeError: If the process ended, or stopped its text early.
        """
        timings = self.complete(PROMPT, tokens + 1, ignore_eos=True)["timings"]
        if timings["predicted_n"] != tokens + 1:
            raise RuntimeError(f"llama.cpp wrote {timings['predicted_n']} tokens; expected {tokens + 1}")
        return float(timings["predicted_ms"]) / 1e3 / tokens

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self._log.close()


def save_with_tokenizer(model: LlamaForCausalLM, path: Path, dtype: str = "q4_0") -> None:
    """Write a model of any size with the tokenizer of SmolLM2, which llama.cpp needs to run it."""
    save_gguf(model, path, dtype=dtype, tokenizer=tokenizer_metadata(Tokenizer.from_gguf(data.smollm2_gguf())))
