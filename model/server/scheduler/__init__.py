"""The engine thread: requests of many clients share the running batch of each model.

| file | job |
|---|---|
| `scheduler` | the methods that handlers call: checks, the queue, deadlines, shutdown |
| `engine_thread` | the one thread that steps the engines |
| `memory` | whether a model fits, before it is loaded |
| `updates` | the values that both exchange: requests, their choices, updates, errors |
| `threads` | the threads that compile schemas and grammars |
"""

from bpe_llama.model.server.scheduler.scheduler import Scheduler
from bpe_llama.model.server.scheduler.updates import EngineError, QueueFullError, ShuttingDownError, Stream, Update

__all__ = ["EngineError", "QueueFullError", "Scheduler", "ShuttingDownError", "Stream", "Update"]
