"""The engine thread: requests of many clients share the running batch of each model.

| file | job |
|---|---|
| `scheduler` | what handlers call: checks, the queue, deadlines, shutdown |
| `engine_thread` | the one thread that steps the engines |
| `memory` | whether a model fits, before it is loaded |
| `updates` | what passes between both: jobs, choices, updates, errors |
"""

from bpe_llama.model.server.scheduler.scheduler import Scheduler
from bpe_llama.model.server.scheduler.updates import (
    Choice,
    EngineError,
    QueueFullError,
    ShuttingDownError,
    Stream,
    Update,
)

__all__ = ["Choice", "EngineError", "QueueFullError", "Scheduler", "ShuttingDownError", "Stream", "Update"]
