"""A service on a real socket that answers by script: each path has a queue of answers.

`on(path, *answers)` queues answers; when the queue is empty the usual answer of that path is
given, so a whole training flow works without any script. Every request is kept in `requests`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import zstandard

from crucible_tinkex.client import (
    ClientSettings,
    Clock,
    Observer,
    QueueState,
    RequestRecord,
    RetryPolicy,
)
from crucible_tinkex.protocol import proto
from crucible_tinkex.protocol.wire import ForwardBackwardOutput, SampleResponse


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def is_protobuf(self) -> bool:
        return self.headers.get("content-type") == proto.CONTENT_TYPE

    @property
    def json(self) -> Any:
        """The body; a protobuf one as the JSON that would say the same."""
        if not self.is_protobuf:
            return json.loads(self.body)
        packed = self.headers.get("content-encoding") == "zstd"
        data = zstandard.ZstdDecompressor().decompress(self.body) if packed else self.body
        call = proto.decode_forward_backward(data)
        part = "forward_input" if call.forward_only else "forward_backward_input"
        given = call.given.model_dump(exclude_none=True, warnings=False)
        return {"model_id": call.model_id, "seq_id": call.seq_id, part: _lists(given)}


def _lists(value: Any) -> Any:
    """With lists in place of arrays."""
    if isinstance(value, Mapping):
        return {k: _lists(v) for k, v in value.items()}
    if isinstance(value, (list, array)):
        return [_lists(v) for v in value]
    return value


@dataclass
class Answer:
    """`mode`: whole | reset (before any byte) | reset_head (within it) | reset_headers (after
    them) | reset_body | truncated | raw (the body is all, and the end) | drip | hang."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    mode: str = "whole"
    delay_s: float = 0.0

    def raw_body(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return b"" if self.body is None else json.dumps(self.body).encode()


FAST = ClientSettings(policy=RetryPolicy(base_s=0.002, cap_s=0.01, total_s=5.0))
"""Retries as in life, only sooner."""


class Recorder(Observer):
    def __init__(self) -> None:
        self.records: list[RequestRecord] = []
        self.states: list[QueueState] = []

    def on_request(self, record: RequestRecord) -> None:
        self.records.append(record)

    def on_queue_state(self, state: QueueState) -> None:
        self.states.append(state)


class ScriptedService:
    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.at_once: list[int] = []
        """For each request, how many were being answered when it came, itself included."""
        self._answering = 0
        self.resets_at_accept = 0
        self.connections = 0
        self.results: dict[str, dict[str, Any]] = {}
        self.config: dict[str, Any] | None = None
        """The answer of client/config; None: there is no such path."""
        self.speaks: set[str] = {"json"}
        """`json` and `protobuf`, for batches and their results."""
        self.refusal = 415
        self._queues: dict[str, deque[Answer]] = defaultdict(deque)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._promises = 0

    async def __aenter__(self) -> ScriptedService:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)

    def on(self, path: str, *answers: Answer) -> None:
        self._queues[path].extend(answers)

    def bodies(self, path: str) -> list[Any]:
        return [r.json for r in self.requests if r.path == "/api/v1/" + path]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            if self.resets_at_accept > 0:
                self.resets_at_accept -= 1
                _reset(writer)
                return
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        seen = Seen(method, path, headers, body)
        self.requests.append(seen)
        name = path.removeprefix("/api/v1/")
        queue = self._queues[name]
        answer = queue.popleft() if queue else self._usual(name, seen)
        self._answering += 1
        self.at_once.append(self._answering)
        try:
            await asyncio.sleep(answer.delay_s)
        finally:
            self._answering -= 1
        return await _write(answer, writer)

    # --- the usual answers --------------------------------------------------------------------

    def _usual(self, name: str, seen: Seen) -> Answer:
        maker: dict[str, Callable[[Any], dict[str, Any]]] = {
            "create_session": lambda b: {"session_id": "s1"},
            "session_heartbeat": lambda b: {},
            "sessions/s1/finish": lambda b: {},
            "create_model": lambda b: self._promise({"model_id": "s1:train:0"}),
            "load_weights": lambda b: self._promise({"path": b["path"]}),
            "create_sampling_session": lambda b: {"sampling_session_id": "s1:sample:0"},
            "get_info": lambda b: {"model_id": b["model_id"], "model_data": {"model_name": "m"}},
            "forward_backward": lambda b: self._promise(_losses(b["forward_backward_input"])),
            "forward": lambda b: self._promise(_losses(b["forward_input"])),
            "optim_step": lambda b: self._promise({"metrics": {"seq": b["seq_id"]}}),
            "save_weights": lambda b: self._promise(
                {"path": f"tinker://{b['model_id']}/weights/{b['path']}"}
            ),
            "save_weights_for_sampler": lambda b: self._promise(
                {"path": f"tinker://{b['model_id']}/sampler_weights/{b['path']}"}
                if "path" in b
                else {"sampling_session_id": f"s1:sample:{b['sampling_session_seq_id']}"}
            ),
            "asample": lambda b: self._promise(
                {
                    "sequences": [
                        {"stop_reason": "length", "tokens": [b["seq_id"]], "logprobs": [-1.0]}
                        for _ in range(b["num_samples"])
                    ]
                }
            ),
            "retrieve_future": lambda b: self.results[b["request_id"]],
            "get_server_capabilities": lambda b: {"supported_models": [{"model_name": "m"}]},
        }
        if name == "client/config" and self.config is not None:
            return Answer(body=self.config)
        if name in ("forward", "forward_backward"):
            encoding = "protobuf" if seen.is_protobuf else "json"
            if encoding not in self.speaks:
                return Answer(self.refusal, {"error": f"no {encoding} here"})
            if encoding == "protobuf" and "forward_input" in seen.json:
                name = "forward"
        if name == "retrieve_future" and "protobuf" in self.speaks:
            result = self.results[seen.json["request_id"]]
            if (packed := _packed(result)) and proto.CONTENT_TYPE in seen.headers["accept"]:
                return Answer(body=packed, headers={"Content-Type": proto.CONTENT_TYPE})
        if name not in maker:
            return Answer(404, {"error": "no such path"})
        return Answer(body=maker[name](seen.json if seen.body else None))

    def _promise(self, result: dict[str, Any]) -> dict[str, Any]:
        self._promises += 1
        request_id = f"r{self._promises}"
        self.results[request_id] = result
        return {"request_id": request_id}


def _packed(result: dict[str, Any]) -> bytes | None:
    """A result that has a protobuf form, in it."""
    if "loss_fn_outputs" in result:
        output = ForwardBackwardOutput.model_validate(result)
        return proto.encode_forward_backward_output(output.loss_fn_outputs, output.metrics)
    if "sequences" in result:
        return proto.encode_sample_response(SampleResponse.model_validate(result))
    return None


def _losses(part: dict[str, Any]) -> dict[str, Any]:
    outputs = []
    for row in part["data"]:
        count = len(row["loss_fn_inputs"]["target_tokens"]["data"])
        outputs.append({"logprobs": {"data": [-1.0] * count, "dtype": "float32"}})
    rows = len(outputs)
    return {
        "loss_fn_outputs": outputs,
        "metrics": {"loss:sum": float(rows), "rows:mean": float(rows), "rows:max": float(rows)},
    }


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _write(answer: Answer, writer: asyncio.StreamWriter) -> bool:
    """Whether the connection may go on."""
    body = answer.raw_body()
    head = f"HTTP/1.1 {answer.status} X\r\n"
    for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
        head += f"{name}: {value}\r\n"
    data = (head + "\r\n").encode() + body
    if answer.mode == "hang":
        await asyncio.sleep(60)
    if answer.mode == "drip":
        for index in range(len(data)):
            writer.write(data[index : index + 1])
            await asyncio.sleep(0.05)
        return True
    if answer.mode == "whole":
        writer.write(data)
        await writer.drain()
        return True
    if answer.mode == "raw":
        data = body
    elif answer.mode != "reset":
        headers = len(data) - len(body)
        half = {"reset_head": headers // 2, "reset_headers": headers}
        data = data[: half.get(answer.mode, headers + len(body) // 2)]
    if answer.mode != "reset":
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0.01)
    if answer.mode in ("truncated", "raw"):
        writer.close()
        return False
    _reset(writer)
    return False


NEVER_S = 1e9


class VirtualTime:
    """A `Clock` in which sleeping takes no time (`NEVER_S`: for ever); `slept` lists the sleeps."""

    def __init__(self, chance: float = 0.5) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self.clock = Clock(
            sleep=self._sleep,
            monotonic=lambda: self.now,
            wall=lambda: self.now,
            chance=lambda: chance,
        )

    async def _sleep(self, seconds: float) -> None:
        assert seconds >= 0
        if seconds >= NEVER_S:
            await asyncio.Event().wait()
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)
