"""What the server costs per request when the engine's work is nothing.

The process is the real app under uvicorn, as `crucible serve` runs it, but behind it stands
`NullEngine`: a thread that answers every operation at once, as the real one does between threads,
with results of the right shape. What is left is HTTP, decoding, checking, ordering, promises and
encoding. A pair is one submit and one retrieve; get_info is one request. CPU is the server
process's own; wall is elapsed time over finished pairs: with one session what it waits, with 32 the
inverse of the throughput, bounded also by this one driving process.
Run: `python -m benchmarks server`.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import crucible_tinkex.protocol.proto as proto
import crucible_tinkex.protocol.wire as wire
from benchmarks.batch import ROWS, TOKENS, datums
from benchmarks.child_server import ChildServer, started
from benchmarks.raw_http import RawHttp
from benchmarks.standin import answer, serve_standin
from crucible_tinkex.client import ClientSettings, TinkexService, TrainingClient
from crucible_tinkex.server.operations import BaseInfo, Operation, Outcome

CLIENTS = ("raw HTTP", "our client")
FORWARD = ("forward_backward, JSON", "forward_backward, protobuf")
KINDS = ("optim_step", *FORWARD, "get_info")
SESSIONS = (1, 32)
SECONDS = 1.5
"""Per case, after a warm-up of a tenth."""
_ADAM = wire.AdamParams(learning_rate=1e-4)
Pair: TypeAlias = Callable[[int], Awaitable[Any]]
"""One request and its result; given the next sequence number."""


class NullEngine:
    """Answers from a thread of its own, in order."""

    def __init__(self, base: BaseInfo) -> None:
        self.base = base
        self._queue: queue.SimpleQueue[tuple[Operation, Callable[[Outcome], None]]]
        self._queue = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, operation: Operation, done: Callable[[Outcome], None]) -> None:
        self._queue.put((operation, done))

    def close(self) -> None:
        pass

    def _run(self) -> None:
        while True:
            operation, done = self._queue.get()
            done(answer(operation))


class RawSession:
    """A session with one model, driven by the least client there is; bodies are made before."""

    def __init__(self, http: RawHttp, model_id: str) -> None:
        self._http = http
        self._model_id = model_id
        self._given = wire.ForwardInput(data=datums(), loss_fn="cross_entropy")
        self._info = json.dumps({"model_id": model_id}).encode()
        self.pairs: dict[str, Pair] = {
            "optim_step": self._optim,
            "forward_backward, JSON": self._json,
            "forward_backward, protobuf": self._protobuf,
            "get_info": lambda number: http.post("get_info", self._info),
        }

    @classmethod
    async def open(cls, server: ChildServer) -> RawSession:
        http = await RawHttp.connect(server.base_url, server.key)
        made = await http.ask("create_session", tags=[], sdk_version="0", type="create_session")
        asked = {"base_model": "nano", "lora_config": {"rank": 8}, "model_seq_id": 0}
        model = await http.ask("create_model", session_id=made["session_id"], **asked)
        ready = json.loads(await http.result(model["request_id"]))
        return cls(http, ready["model_id"])

    async def _optim(self, number: int) -> None:
        body = wire.OptimStepRequest(model_id=self._model_id, seq_id=number, adam_params=_ADAM)
        await self._pair("optim_step", body.body())

    async def _json(self, number: int) -> None:
        body = wire.ForwardBackwardRequest(
            model_id=self._model_id, seq_id=number, forward_backward_input=self._given
        )
        await self._pair("forward_backward", body.body())

    async def _protobuf(self, number: int) -> None:
        request = wire.ForwardBackwardRequest(
            model_id=self._model_id, seq_id=number, forward_backward_input=self._given
        )
        body = proto.encode_forward_backward(request, forward_only=False)
        await self._pair("forward_backward", body, encoding=proto.CONTENT_TYPE)

    async def _pair(self, path: str, body: bytes, *, encoding: str = "application/json") -> None:
        envelope = json.loads(await self._http.post(path, body, content_type=encoding))
        assert await self._http.result(envelope["request_id"], accept=encoding)

    async def close(self) -> None:
        self._http.close()


class OurSession:
    """The same through our client; the encoding is fixed per session."""

    def __init__(self, service: TinkexService, model: TrainingClient) -> None:
        self._service = service
        self._model = model
        self._data = datums()
        self.pairs: dict[str, Pair] = {
            "optim_step": lambda number: model.optim_step(_ADAM),
            "get_info": lambda number: model.info(),
            **dict.fromkeys(FORWARD, lambda number: model.forward_backward(self._data)),
        }

    @classmethod
    async def open(cls, server: ChildServer, kind: str) -> OurSession:
        encoding: Any = "protobuf" if "protobuf" in kind else "json"
        settings = ClientSettings(encoding=encoding)
        service = TinkexService(
            server.base_url, api_key_file=server.api_key_file, settings=settings
        )
        model = await service.create_training(base_model="nano", lora=wire.LoraConfig(rank=8))
        return cls(service, model)

    async def close(self) -> None:
        await self._service.close()


async def _case(server: ChildServer, client: str, kind: str, count: int) -> tuple[float, float]:
    """CPU ms of the server and wall ms, both over the pairs that finished."""
    made: list[RawSession | OurSession] = [
        await (RawSession.open(server) if client == CLIENTS[0] else OurSession.open(server, kind))
        for _ in range(count)
    ]
    pairs = [m.pairs[kind] for m in made]
    done = [0] * count

    async def drive(index: int, until_s: float) -> None:
        while time.perf_counter() < until_s:
            done[index] += 1
            await pairs[index](done[index])

    async def all_until(until_s: float) -> None:
        await asyncio.gather(*(drive(i, until_s) for i in range(count)))

    await all_until(time.perf_counter() + SECONDS / 10)
    before, cpu_s, started_s = sum(done), server.cpu_s(), time.perf_counter()
    await all_until(started_s + SECONDS)
    wall_s, cpu_s = time.perf_counter() - started_s, server.cpu_s() - cpu_s
    for session in made:
        await session.close()
    finished = sum(done) - before
    return 1000 * cpu_s / finished, 1000 * wall_s / finished


def _run(server: ChildServer) -> list[str]:
    lines = []
    for client in CLIENTS:
        for kind in KINDS:
            cells = [client, kind]
            for count in SESSIONS:
                cpu_ms, wall_ms = asyncio.run(_case(server, client, kind, count))
                cells += [f"{cpu_ms:.2f}", f"{wall_ms:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def run() -> str:
    with started("benchmarks.server_cost") as server:
        rows = _run(server)
    heads = [f"{what}, {n} sessions" for n in SESSIONS for what in ("CPU ms", "wall ms")]
    return "\n".join(
        [
            f"The server per submit + retrieve ({ROWS} x {TOKENS} tokens) with an idle engine:",
            "",
            f"| | | {' | '.join(heads)} |",
            f"|{'---|' * (len(heads) + 2)}",
            *rows,
        ]
    )


if __name__ == "__main__":
    serve_standin(Path(sys.argv[1]), NullEngine)
