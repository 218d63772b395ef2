"""The app over a real engine in this process, asked through ASGI: no socket, no second process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import torch

from crucible_tinkex.server.bases import Base
from crucible_tinkex.server.engine.engine import TorchEngine
from crucible_tinkex.server.sessions.limits import Limits
from crucible_tinkex.server.store.store import Store
from crucible_tinkex.server.web.app import App

KEY = "tml-test-key"


def row_data(*rows: list[int], **changes: Any) -> dict[str, Any]:
    """A `forward_backward_input` of these rows."""
    items = []
    for row in rows:
        inputs = {
            "target_tokens": {"data": row[1:], "dtype": "int64"},
            "weights": {"data": [1.0] * (len(row) - 1), "dtype": "float32"},
        }
        chunks = [{"type": "encoded_text", "tokens": row[:-1]}]
        items.append({"model_input": {"chunks": chunks}, "loss_fn_inputs": {**inputs, **changes}})
    return {"data": items, "loss_fn": "cross_entropy"}


class AppClient:
    """Blocking calls; the event loop runs only during one."""

    def __init__(
        self,
        base: Base,
        folder: Path,
        *,
        limits: Limits | None = None,
        token_cap: int = 1024,
        long_poll_s: float = 20.0,
    ) -> None:
        self.store = Store(folder)
        self.engine = TorchEngine(base, self.store, dtype=torch.float32, token_cap=token_cap)
        self.app = App(self.engine, self.store, KEY, limits=limits, long_poll_s=long_poll_s)
        self._runner = asyncio.Runner()
        self._http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app),
            base_url="http://server/api/v1/",
            headers={"X-API-Key": KEY},
        )

    def close(self) -> None:
        self._runner.run(self._http.aclose())
        self._runner.close()
        self.engine.close()

    def send(self, method: str, path: str, /, **given: Any) -> httpx.Response:
        return self._runner.run(self._http.request(method, path, **given))

    def together(
        self, *asks: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]
    ) -> list[httpx.Response]:
        """The answers of requests that are sent at the same time."""

        async def inside() -> list[httpx.Response]:
            return await asyncio.gather(*(ask(self._http) for ask in asks))

        return self._runner.run(inside())

    def run(self, work: Callable[[], Any]) -> Any:
        """`work()` in the event loop."""

        async def inside() -> Any:
            return work()

        return self._runner.run(inside())

    def post(self, path: str, /, **body: Any) -> httpx.Response:
        return self.send("POST", path, content=json.dumps(body))

    def ok(self, path: str, /, **body: Any) -> Any:
        response = self.post(path, **body)
        while path == "retrieve_future" and response.status_code == 408:
            response = self.post(path, **body)
        assert response.status_code == 200, response.text
        return response.json()

    def get(self, path: str) -> Any:
        response = self.send("GET", path)
        assert response.status_code == 200, response.text
        return response.json()

    def promise(self, path: str, /, **body: Any) -> str:
        return str(self.ok(path, **body)["request_id"])

    def result(self, path: str, /, **body: Any) -> Any:
        return self.ok("retrieve_future", request_id=self.promise(path, **body))

    def session(self, **more: Any) -> str:
        return str(self.ok("create_session", sdk_version="test", **more)["session_id"])

    def creating(self, session: str, number: int = 0, **more: Any) -> str:
        lora = {"rank": 4, "seed": 1}
        return self.promise(
            "create_model",
            session_id=session,
            model_seq_id=number,
            base_model="nano",
            lora_config=lora,
            **more,
        )

    def model(self, session: str | None = None, number: int = 0, **more: Any) -> str:
        request_id = self.creating(session or self.session(), number, **more)
        return str(self.ok("retrieve_future", request_id=request_id)["model_id"])

    def sampler(self) -> str:
        """A sampling session of the base, in a session of its own."""
        asked = {"session_id": self.session(), "sampling_session_seq_id": 0, "base_model": "nano"}
        return str(self.ok("create_sampling_session", **asked)["sampling_session_id"])

    def train(self, model: str, seq_id: int, *rows: list[int], **more: Any) -> str:
        given = row_data(*(rows or ([1, 2, 3],)), **more)
        return self.promise(
            "forward_backward", model_id=model, seq_id=seq_id, forward_backward_input=given
        )
