"""How many live sessions one real server holds, and what they cost when it may not hold them all.

A session here has a model of rank 8 on `nano` that has been trained once: its A and B, Adam's m and
v exist. The first run creates sessions, never spilling, until the server's process has grown to
`MEMORY_MB` or `MAX_SESSIONS` are alive, and then steps the oldest ones again to show that they
still live. The second gives the server room for `SMALL_MB` only, creates as many again, and steps
models in an order that makes it fetch each from disk. Run: `python -m benchmarks sessions`.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child_server import ChildServer, started
from benchmarks.raw_http import RawHttp
from crucible_tinkex.server.sessions.limits import Limits
from crucible_tinkex.server.web.serve import ServeOptions, serve

MEMORY_MB = 8 * 1024
SMALL_MB = 1024
MAX_SESSIONS = 20_000
CHUNK = 250
"""Sessions between two looks at the memory."""
CONNECTIONS = 4
PROBES = 50
_TOKENS = list(range(3, 20))


@dataclass(slots=True)
class Filled:
    """A server full of sessions; ms are per session, of wall time."""

    models: list[str]
    empty_mb: float
    full_mb: float
    chunks_ms: list[float]
    step_ms: float
    """A forward_backward and an optim_step of one of the oldest models, alone."""

    @property
    def session_mb(self) -> float:
        return (self.full_mb - self.empty_mb) / len(self.models)


async def _train(http: RawHttp, model_id: str, number: int) -> None:
    """A forward_backward and an optim_step, both sent before either is awaited."""
    row = {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": _TOKENS[:-1]}]},
        "loss_fn_inputs": {"target_tokens": _tensor(_TOKENS[1:])},
    }
    given = {"data": [row], "loss_fn": "cross_entropy"}
    sent = [
        await http.ask(
            "forward_backward", model_id=model_id, seq_id=number, forward_backward_input=given
        ),
        await http.ask(
            "optim_step", model_id=model_id, seq_id=number + 1, adam_params={"learning_rate": 1e-4}
        ),
    ]
    for promise in sent:
        outcome = json.loads(await http.result(promise["request_id"]))
        if "error" in outcome:
            raise RuntimeError(outcome["error"])


def _tensor(tokens: list[int]) -> dict[str, Any]:
    return {"data": tokens, "dtype": "int64", "shape": [len(tokens)]}


async def _create(http: RawHttp) -> str:
    """A new session with a model that has made one step."""
    session = await http.ask("create_session", tags=[], sdk_version="0", type="create_session")
    lora = {"rank": 8, "seed": 0}
    asked = {"base_model": "nano", "lora_config": lora, "model_seq_id": 0}
    promise = await http.ask("create_model", session_id=session["session_id"], **asked)
    ready = json.loads(await http.result(promise["request_id"]))
    await _train(http, ready["model_id"], 1)
    model_id: str = ready["model_id"]
    return model_id


async def _fill(server: ChildServer, memory_mb: float, count: int) -> Filled:
    connections = [await RawHttp.connect(server.base_url, server.key) for _ in range(CONNECTIONS)]
    models: list[str] = []
    chunks_ms: list[float] = []
    empty_mb = server.memory_mb()
    while len(models) < count and server.memory_mb() < memory_mb:

        async def some(http: RawHttp) -> None:
            for _ in range(CHUNK // CONNECTIONS):
                models.append(await _create(http))

        before, started_s = len(models), time.perf_counter()
        await asyncio.gather(*map(some, connections))
        chunks_ms.append(1000 * (time.perf_counter() - started_s) / (len(models) - before))
        print(f"{len(models)} sessions, {server.memory_mb():,.0f} MB", file=sys.stderr, flush=True)
    steps_ms = []
    for model_id in models[:PROBES]:
        started_s = time.perf_counter()
        await _train(connections[0], model_id, 3)
        steps_ms.append(1000 * (time.perf_counter() - started_s))
    for http in connections:
        http.close()
    full_mb = server.memory_mb()
    return Filled(models, empty_mb, full_mb, chunks_ms, statistics.median(steps_ms))


def _filled(limit_mb: float, count: int, budget_mb: int) -> Filled:
    with started("benchmarks.sessions", str(budget_mb)) as server:
        return asyncio.run(_fill(server, limit_mb, count))


def run(memory_mb: float = MEMORY_MB) -> str:
    live = _filled(memory_mb, MAX_SESSIONS, 1024 * 1024)
    spilled = _filled(1024 * 1024, len(live.models), SMALL_MB)
    rows = [(f"all in memory, up to {memory_mb:,.0f} MB", live)]
    rows += [(f"models may take {SMALL_MB:,} MB", spilled)]
    return "\n".join(
        [
            "Sessions on one server (`nano`, rank 8, each trained once); ms of wall time:",
            "",
            "| | sessions | MB of the process | MB per session | ms to create and train one, "
            "first | last | ms per step of the oldest |",
            "|---|---|---|---|---|---|---|",
            *(_row(name, f) for name, f in rows),
        ]
    )


def _row(name: str, filled: Filled) -> str:
    ends = max(1, len(filled.chunks_ms) // 5)
    cells = [
        name,
        f"{len(filled.models):,}",
        f"{filled.full_mb:,.0f}",
        f"{filled.session_mb:.2f}",
        f"{statistics.median(filled.chunks_ms[:ends]):.1f}",
        f"{statistics.median(filled.chunks_ms[-ends:]):.1f}",
        f"{filled.step_ms:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _serve(folder: Path, budget_mb: int) -> None:
    limits = Limits(max_sessions=MAX_SESSIONS, max_models=MAX_SESSIONS)
    serve(
        ServeOptions(
            data_dir=folder,
            model="nano",
            dtype="fp32",
            threads=1,
            ready_file=folder / "ready.json",
            exit_with_parent=True,
            limits=limits,
            memory_bytes=budget_mb * 1024**2,
        )
    )


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
