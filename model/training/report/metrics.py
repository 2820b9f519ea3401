"""The metrics of a run as JSON lines."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from bpe_llama._files import append_bytes, read_text, write_text
from bpe_llama.model.training.callbacks import Callback, Metrics, Run


def read_metrics(path: str | os.PathLike[str]) -> list[Metrics]:
    """Return the lines of a `metrics.jsonl`; a last line that a killed process left incomplete is dropped.

    Raises:
        ValueError: If another line is no JSON object with a step; the message has its number.
    """
    path = Path(path)
    metrics: list[Metrics] = []
    if not path.exists():
        return metrics
    lines = read_text(path, newline="").split("\n")
    for number, line in enumerate(lines[:-1], start=1):  # a complete line ends with a line break
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error}); mend or remove it") from None
        if not isinstance(values, dict) or not isinstance(values.get("step"), (int, float)):
            raise ValueError(f"{path}: line {number} is {line:.80}; expected a JSON object with a step")
        metrics.append(values)
    return metrics


class MetricsFile(Callback):
    """Appends a line of JSON to `path` at each log interval and evaluation.

    Lines after `step`, which a killed run wrote after its checkpoint, are dropped first.
    """

    def __init__(self, path: Path, step: int) -> None:
        """Drop the lines after `step` and open the file for appending."""
        lines = [line for line in read_metrics(path) if line["step"] <= step] if step else []
        self._lines = lines
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115, closed by close()

    def last(self, key: str, step: int | None = None) -> float:
        """Return the last value of `key` that the file held at first, or that of `step`; NaN if there is none."""
        found = [line[key] for line in self._lines if key in line and step in (None, line["step"])]
        return found[-1] if found else math.nan

    def write(self, **values: float | str) -> None:
        """Append one line.

        Raises:
            OSError: If it cannot be written, for example on a full disk.
        """
        append_bytes(self._file, (json.dumps(values) + "\n").encode())

    def on_log(self, run: Run, metrics: Metrics) -> None:
        """Append the metrics of an interval or an evaluation."""
        self.write(**metrics)

    on_eval = on_log

    def close(self) -> None:
        """Close the file."""
        self._file.close()
