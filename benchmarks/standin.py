"""A stand-in service: our server's HTTP app over an engine that only waits.

Each forward_backward takes 0.2 s, models never wait for each other, and nothing is trained: what
remains is the cost of whoever drives it. Run: `python -m benchmarks.standin FOLDER`; it writes
`ready.json` there and ends when its standard input closes.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import uvicorn

from crucible_tinkex.server.app import build_app
from crucible_tinkex.server.nano import write_tokenizer
from crucible_tinkex.server.operations import (
    BaseInfo,
    CreateModel,
    Done,
    ForwardBackward,
    ForwardOutput,
    LoadWeights,
    ModelReady,
    Operation,
    OptimStep,
    Outcome,
    Saved,
    SaveWeights,
    StepOutput,
)

STEP_S = 0.2
KEY = "tml-standin"


class WaitingEngine:
    """Answers every operation after its time has passed, in order per model."""

    def __init__(self, base: BaseInfo) -> None:
        self.base = base
        self._free_at: dict[str, float] = {}

    def submit(self, operation: Operation, done: Callable[[Outcome], None]) -> None:
        loop = asyncio.get_running_loop()
        model_id = getattr(operation, "model_id", "")
        seconds = STEP_S if isinstance(operation, ForwardBackward) else 0.0
        at = max(loop.time(), self._free_at.get(model_id, 0.0)) + seconds
        self._free_at[model_id] = at
        loop.call_at(at, lambda: done(_answer(operation)))

    def close(self) -> None:
        pass


def _answer(operation: Operation) -> Outcome:
    if isinstance(operation, CreateModel):
        return ModelReady(operation.model_id)
    if isinstance(operation, LoadWeights):
        return ModelReady(operation.model_id, operation.path)
    if isinstance(operation, ForwardBackward):
        logprobs = tuple(np.full(len(r.tokens), -1.0, np.float32) for r in operation.rows)
        return ForwardOutput(logprobs, {"loss:sum": 1.0})
    if isinstance(operation, OptimStep):
        return StepOutput({"grad_norm": 1.0})
    if isinstance(operation, SaveWeights):
        return Saved(operation.path)
    return Done()


async def _serve(folder: Path) -> None:
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    write_tokenizer(tokenizer)
    (folder / "api_key").write_text(KEY)
    base = BaseInfo("nano", str(tokenizer), vocab_size=512, max_length=2048)
    listener = socket.create_server(("127.0.0.1", 0))
    app = build_app(WaitingEngine(base), api_key=KEY, data_dir=folder)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    ready = {"base_url": url, "api_key_file": str(folder / "api_key")}
    (folder / "ready.json").write_text(json.dumps(ready))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await asyncio.to_thread(sys.stdin.read)
    server.should_exit = True
    await serving


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
