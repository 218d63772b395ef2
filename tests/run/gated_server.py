"""The embedded server behind a gate that can say "slow down" and "no capacity". A process of its
own: `python gated_server.py FOLDER [SECONDS]`; it writes `ready.json` and `gate.jsonl` there.

An optim_step takes `STEP_S` longer, so that no trial ends before all have heard of the first one's
back-off. The second optim_step of all is refused with a 429, and so is every later one for SECONDS.
When sending was resumed, the next poll that asks for an optim_step is answered "paused for
capacity" for a while. Each request is a line of `gate.jsonl`: when it came (Unix seconds), its
path, what the gate did.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import crucible_tinkex.server.web.serve as serving
from crucible_tinkex.server.web.app import App

RETRY_AFTER_S = 12
PAUSED_S = 3
STEP_S = 0.15
API = "/api/v1/"


class Gate(App):
    """Opened by `serve` in place of `App`."""

    log: Path
    refuse_s = 0.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._steps = 0
        self._refused_at: float | None = None
        self._paused_until: float | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path, now = scope["path"].removeprefix(API), time.time()
        done = await self._act(path, dict(scope["headers"]), now, receive, send)
        with self.log.open("a") as log:
            log.write(json.dumps({"at": now, "path": path, "did": done}) + "\n")
        if not done:
            await super().__call__(scope, receive, send)

    async def _act(
        self, path: str, headers: dict[bytes, bytes], now: float, receive: Any, send: Any
    ) -> str | None:
        if path == "optim_step":
            await asyncio.sleep(STEP_S)
            self._steps += 1
            since = now - (self._refused_at or now)
            if self._steps == 2 or (self._steps > 2 and since < self.refuse_s):
                self._refused_at = self._refused_at or now
                await _answer(send, 429, {"error": "too many"}, {"retry-after": RETRY_AFTER_S})
                return "refused"
        resumed = self._refused_at is not None and now > self._refused_at + RETRY_AFTER_S
        if path == "retrieve_future" and resumed:
            if self._paused_until is None:
                self._paused_until = now + PAUSED_S
            if now < self._paused_until:
                asked = json.loads((await receive())["body"])["request_id"]
                pause = {"type": "try_again", "request_id": asked, "queue_state": "paused_capacity"}
                await _answer(send, 408, {**pause, "queue_state_reason": "the cluster is full"}, {})
                return "paused"
        return None


async def _answer(send: Any, status: int, body: dict[str, Any], headers: dict[str, int]) -> None:
    fields = [(b"content-type", b"application/json")]
    fields += [(k.encode(), str(v).encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    Gate.log = folder / "gate.jsonl"
    Gate.refuse_s = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    serving.App = Gate  # type: ignore[misc]
    serving.serve(
        serving.ServeOptions(
            data_dir=folder / "data",
            model="nano",
            dtype="fp32",
            threads=1,
            ready_file=folder / "ready.json",
            exit_with_parent=True,
        )
    )
