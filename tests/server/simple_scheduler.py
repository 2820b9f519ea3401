"""A thread around the engine, with the scheduler's interface: no fairness, no prefix cache."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from concurrent.futures import Future

from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.server.scheduler import QueueFullError, Scheduler, ShuttingDownError, Update


class SimpleScheduler(Scheduler):
    def __init__(self, generators, *, slots=16, max_queue=256, max_length=None, **_):
        self.generators, self.slots, self.max_queue, self.max_length = generators, slots, max_queue, max_length
        self.engines, self.jobs, self.live, self.closing = {}, queue.Queue(), [], False
        self.tokens = 0
        self.keys = set()

    def start(self):
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.thread.start()

    async def generate(self, model, prompt, *, n=1, key="", timeout=None, **options):
        if self.closing:
            raise ShuttingDownError("the server is about to end")
        generator = self.generators[model]
        self.keys.add(key)
        requests = []
        for copy in range(n):
            request = generator.request(prompt, options)
            if copy:
                seed = requests[0].options.seed + copy
                request = generator.request(prompt, options | {"seed": seed})
            requests.append(request)
        if len(self.live) + n > self.slots + self.max_queue:
            raise QueueFullError(1)
        loop, updates = asyncio.get_running_loop(), asyncio.Queue()
        deadline = None if timeout is None else time.monotonic() + timeout
        state = {"gone": False}
        for index, request in enumerate(requests):
            send = lambda update: loop.call_soon_threadsafe(updates.put_nowait, update)  # noqa: E731
            self.jobs.put((model, request, index, send, deadline, state))
        left = n
        try:
            while left:
                update = await updates.get()
                if isinstance(update, Exception):
                    raise update
                left -= update.finish_reason is not None
                yield update
        finally:
            state["gone"] = True

    def _loop(self):
        while True:
            try:
                while True:
                    job = self.jobs.get(block=not self.live)
                    if job is None:
                        return
                    if isinstance(job, tuple) and len(job) == 2:
                        future, function = job
                        try:
                            future.set_result(function())
                        except BaseException as error:
                            future.set_exception(error)
                        continue
                    self._admit(job)
            except queue.Empty:
                pass
            for engine in self.engines.values():
                if engine.has_unfinished_requests():
                    try:
                        engine.step()
                    except Exception as error:
                        for entry in [entry for entry in self.live if entry[0] is engine]:
                            engine.abort(entry[1].sequence)
                            entry[3](error)
                            self.live.remove(entry)
            self._report()

    def _admit(self, job):
        model, request, index, send, deadline, state = job
        if model not in self.engines:
            self.engines[model] = Engine(self.generators[model].model, self.slots, self.max_length)
        engine = self.engines[model]
        try:
            request.sequence = engine.add_request(request.prompt, request.options)
        except Exception as error:
            send(error)
            return
        self.live.append([engine, request, index, send, deadline, state, 0])

    def _report(self):
        for entry in list(self.live):
            engine, request, index, send, deadline, state, sent = entry
            sequence = request.sequence
            late = deadline is not None and time.monotonic() > deadline
            if state["gone"] or late:
                engine.abort(sequence)
            request.read(engine)
            new = sequence.new_ids[sent:]
            self.tokens += len(new)
            if request.done and not new and not late:
                pass
            if not (new or request.done or late):
                continue
            options = request.options
            first = sent == 0
            reason = ("timeout" if late else "stop" if sequence.finish_reason is None else sequence.finish_reason) if (
                request.done or late
            ) else None
            update = Update(
                index,
                "".join(request.take()),
                list(new),
                sequence.logprobs[sent:] if options.logprobs else [],
                sequence.top_logprobs[sent:],
                list(sequence.prompt_logprobs) if first else [],
                list(sequence.prompt_top_logprobs) if first else [],
                reason,
            )
            entry[6] = sent + len(new)
            send(update)
            if reason:
                self.live.remove(entry)

    async def run(self, function):
        future = Future()
        self.jobs.put((future, function))
        return await asyncio.wrap_future(future)

    async def shutdown(self, grace=30.0):
        self.closing = True
        until = time.monotonic() + grace
        while self.live and time.monotonic() < until:
            await asyncio.sleep(0.01)
        for entry in self.live:
            entry[5]["gone"] = True
        self.jobs.put(None)
        self.thread.join(5)

    def stats(self):
        return {"running": len(self.live), "waiting": 0, "generated_tokens": self.tokens}
