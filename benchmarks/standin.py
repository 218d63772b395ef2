"""A stand-in service: our server's HTTP app over an engine that only waits.

Each forward_backward takes `STEP_S`, or the seconds given; models never wait for each other, and
nothing is trained: what remains is the cost of whoever drives it. Run: `python -m
benchmarks.standin FOLDER [SECONDS]`; it writes `ready.json` there and ends when its standard input
closes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from crucible_tinkex.server.bases.nano import write_tokenizer
from crucible_tinkex.server.operations import (
    BaseInfo,
    CreateModel,
    Done,
    Engine,
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
from crucible_tinkex.server.store.store import Store
from crucible_tinkex.server.web.serve import serve_engine

STEP_S = 0.2
KEY = "tml-standin"


class WaitingEngine:
    """Answers every operation after its time has passed, in order per model."""

    def __init__(self, base: BaseInfo, step_s: float = STEP_S) -> None:
        self.base = base
        self._step_s = step_s
        self._free_at: dict[str, float] = {}

    def submit(self, operation: Operation, done: Callable[[Outcome], None]) -> None:
        loop = asyncio.get_running_loop()
        model_id = getattr(operation, "model_id", "")
        seconds = self._step_s if isinstance(operation, ForwardBackward) else 0.0
        at = max(loop.time(), self._free_at.get(model_id, 0.0)) + seconds
        self._free_at[model_id] = at
        loop.call_at(at, lambda: done(answer(operation)))

    def close(self) -> None:
        pass


def answer(operation: Operation) -> Outcome:
    """A result of the right shape, with nothing behind it."""
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


def serve_standin(folder: Path, engine: Callable[[BaseInfo], Engine]) -> None:
    """Serve the engine that `engine` makes until standard input ends."""
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    write_tokenizer(tokenizer)
    key_file = folder / "api_key"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    base = BaseInfo("nano", str(tokenizer), vocab_size=512, max_length=2048)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready = folder / "ready.json"
        serve_engine(engine(base), Store(folder), KEY, key_file, listener, ready)


def _end_with_stdin() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    step_s = float(sys.argv[2]) if len(sys.argv) > 2 else STEP_S
    serve_standin(Path(sys.argv[1]), lambda base: WaitingEngine(base, step_s))
