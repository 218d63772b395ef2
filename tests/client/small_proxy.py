"""An HTTP proxy on a real socket: tunnels (CONNECT), forwarding (absolute form), and its faults.

Whatever host a client asks for, it gets `target`, a port of this machine.
"""

from __future__ import annotations

import asyncio
import ssl


class SmallProxy:
    """`answer`: raw bytes in place of a tunnel's 200; `mode`: whole | hang | close | inject."""

    def __init__(
        self, target: int, *, authorization: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.target = target
        self.authorization = authorization
        self.answer: bytes | None = None
        self.mode = "whole"
        self.asked: list[str] = []
        """The first lines of the requests."""
        self.relayed = bytearray()
        """All that passed from clients to the target, as the proxy sees it."""
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> SmallProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().strip().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        self.asked.append(first)
        if self.authorization is not None and (
            headers.pop("proxy-authorization", None) != self.authorization
        ):
            writer.write(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
            return True
        if self.mode == "hang":
            await asyncio.sleep(60)
        if self.mode == "close" or self.answer is not None:
            writer.write(self.answer or b"")
            await writer.drain()
            return False
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers.add(target_writer)
        if first.startswith("CONNECT "):
            extra = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged" * (self.mode == "inject")
            writer.write(b"HTTP/1.1 200 Established\r\nVia: small\r\n\r\n" + extra)
            await asyncio.gather(
                self._relay(reader, target_writer, counts=True),
                self._relay(target_reader, writer, counts=False),
            )
            return False
        method, url, version = first.split(" ")
        path = "/" + url.split("/", 3)[3]
        sent = [f"{method} {path} {version}", *[f"{k}: {v}" for k, v in headers.items()]]
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        data = "\r\n".join(sent).encode() + b"\r\n\r\n" + body
        self.relayed += data
        target_writer.write(data)
        answer = await target_reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        writer.write(answer + await target_reader.readexactly(length))
        target_writer.transport.abort()
        return True

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool
    ) -> None:
        while data := await reader.read(65536):
            if counts:
                self.relayed += data
            writer.write(data)
            await writer.drain()
        writer.transport.abort()
