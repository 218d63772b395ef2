"""The least that can speak HTTP/1.1 to a server: one kept-alive connection, bytes in, bytes out."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit


class RawHttp:
    """Requests one at a time. Every answer must be a 200 with a content-length."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str):
        self._reader, self._writer, self._head = reader, writer, head

    @classmethod
    async def connect(cls, base_url: str, key: str) -> RawHttp:
        where = urlsplit(base_url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        return cls(reader, writer, f"Host: {where.netloc}\r\nX-API-Key: {key}\r\n")

    async def post(
        self, path: str, body: bytes, *, content_type: str = "application/json", accept: str = "*/*"
    ) -> bytes:
        head = (
            f"POST /api/v1/{path} HTTP/1.1\r\n{self._head}Content-Type: {content_type}\r\n"
            f"Accept: {accept}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        fields = dict(line.split(b": ", 1) for line in lines[1:] if line)
        answer = await self._reader.readexactly(int(fields[b"content-length"]))
        if lines[0].split()[1] != b"200":
            raise RuntimeError(f"{path}: {lines[0]!r} {answer[:500]!r}")
        return answer

    async def ask(self, path: str, **body: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(await self.post(path, json.dumps(body).encode()))
        return answer

    async def result(self, request_id: str, *, accept: str = "application/json") -> bytes:
        """Of a promise, as soon as it is there."""
        body = json.dumps({"request_id": request_id}).encode()
        return await self.post("retrieve_future", body, accept=accept)

    def close(self) -> None:
        self._writer.close()
