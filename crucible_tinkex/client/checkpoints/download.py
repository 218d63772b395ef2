"""Downloads of checkpoints: signed URLs to files, with bounded memory and bounded disk.

Guarantees: the API key is never sent; only https, or http to this machine; no link-local host;
no redirect is followed; a file appears under its name only when it is complete, and the folder
only when all is in it. Interrupted transfers start again, a few times. Unpacking is `archive`'s.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from crucible_tinkex.client.checkpoints.archive import ArchiveLimits, member_path, unpack
from crucible_tinkex.client.http.address import Address
from crucible_tinkex.client.http.exchange import ExchangeError, Limits
from crucible_tinkex.client.http.retry import Clock
from crucible_tinkex.client.http.transport import USER_AGENT
from crucible_tinkex.errors import (
    ConfigError,
    ProtocolError,
    ServiceError,
    ServiceUnavailableError,
    StorageError,
)
from crucible_tinkex.storage import storage_errors

if TYPE_CHECKING:
    from crucible_tinkex.client.http.connections import Connections

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes so far, and their total if it is known."""


class DownloadLimits(NamedTuple):
    """`idle_s` is the longest silence within a transfer; the whole has no deadline."""

    archive: ArchiveLimits = ArchiveLimits()
    idle_s: float = 60.0
    attempts: int = 4
    pause_s: float = 1.0


class Download:
    """One checkpoint into one new folder."""

    def __init__(
        self,
        clock: Clock,
        folder: Path,
        *,
        progress: Progress | None = None,
        limits: DownloadLimits | None = None,
    ) -> None:
        self._clock = clock
        self._folder = folder.expanduser().absolute()
        self._progress = progress
        self._limits = limits or DownloadLimits()
        self._budget_bytes = self._limits.archive.bytes

    async def archive(self, url: str) -> list[Path]:
        """Fetch a tar file and unpack it."""
        with self._staged() as staged:
            packed = Path(staged) / "archive"
            await self._fetch(url, packed, name="archive")
            content = Path(staged) / "content"
            content.mkdir()
            await asyncio.to_thread(unpack, packed, content, limits=self._limits.archive)
            return self._publish(content)

    async def files(self, urls: Mapping[str, str]) -> list[Path]:
        """Fetch each file by its own URL."""
        if not urls or len(urls) > self._limits.archive.members:
            raise ProtocolError(f"the service offers {len(urls)} files for this checkpoint")
        places = {name: member_path(name) for name in urls}
        with self._staged() as staged:
            content = Path(staged) / "content"
            for name, url in urls.items():
                target = content / places[name]
                target.parent.mkdir(parents=True, exist_ok=True)
                await self._fetch(url, target, name=name)
            return self._publish(content)

    def _staged(self) -> tempfile.TemporaryDirectory[str]:
        if self._folder.exists():
            raise StorageError(f"{self._folder} exists; choose another folder for the download")
        with storage_errors(self._folder):
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryDirectory(dir=self._folder.parent, prefix=".download-")

    def _publish(self, content: Path) -> list[Path]:
        with storage_errors(self._folder):
            os.replace(content, self._folder)
        return sorted(p for p in self._folder.rglob("*") if p.is_file())

    async def _fetch(self, url: str, target: Path, *, name: str) -> None:
        from crucible_tinkex.client.http.connections import Connections

        address, path = split_url(url)
        connections = Connections(address, Limits(answer_bytes=self._budget_bytes))
        last = ""
        try:
            for attempt in range(self._limits.attempts):
                if attempt:
                    await self._clock.sleep(self._limits.pause_s * 2 ** (attempt - 1))
                try:
                    self._budget_bytes -= await self._stream(connections, path, target, name)
                    return
                except ExchangeError as error:
                    if error.is_malformed:
                        raise ProtocolError(f"the download of {name!r} failed: {error}") from None
                    last = str(error)
                    if error.is_final:
                        break
        finally:
            await connections.aclose()
        raise ServiceUnavailableError(f"the download of {name!r} failed: {last}")

    async def _stream(self, connections: Connections, path: str, target: Path, name: str) -> int:
        headers = [
            (b"Accept", b"*/*"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", USER_AGENT.encode()),
        ]
        written = 0

        def write(part: bytes, total: int | None) -> None:
            nonlocal written
            with storage_errors(target):
                written += file.write(part)
            if self._progress is not None:
                self._progress(name, written, total)

        with storage_errors(target):
            file = target.open("wb")
        with file:
            reply = await connections.exchange(
                "GET", path, headers, write=write, idle_s=self._limits.idle_s
            )
        status = reply.status
        if status >= 500 or status in (408, 429):
            raise ExchangeError(f"HTTP {status}")
        if status != 200:
            raise ServiceError(
                f"the download of {name!r} was refused: HTTP {status}", status=status
            )
        return written


def split_url(url: str) -> tuple[Address, str]:
    """The host of a signed URL, and what to ask it for. Raises `ProtocolError` for unsafe ones."""
    try:
        parts = urlsplit(url)
        address = Address.parse(urlunsplit((parts.scheme, parts.netloc, "", "", "")) or "none")
    except (ValueError, ConfigError) as error:
        raise ProtocolError(f"the service gave an unsafe download URL: {error}") from None
    if not f"{parts.path}{parts.query}".isascii() or " " in url:
        raise ProtocolError("the service gave a download URL with characters that no URL has")
    path = parts.path or "/"
    return address, f"{path}?{parts.query}" if parts.query else path
