"""The embedded server as a child process of the driver.

It dies with the driver (its standard input closes), keeps its checkpoints in the sweep's folder,
and is started again on the same port if it dies first; sessions then resume from checkpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_tinkex.config import ServiceSection
from crucible_tinkex.errors import CrucibleError, ServiceUnavailableError
from crucible_tinkex.names import SERVER_LOCK
from crucible_tinkex.storage import is_locked
from crucible_tinkex.telemetry.tracing.asked import environment

log = logging.getLogger(__name__)

START_S = 900.0
"""Time to come up; the first start fetches the model."""
MAX_RESTARTS = 3
OWN_EXIT_CODES = (2, 5)
"""Configuration and storage: passed on; any other end of the server is a service error, 4."""


def _said(ready: Path) -> dict[str, Any]:
    """By the server that came up in the folder last; nothing where none has."""
    try:
        found: dict[str, Any] = json.loads(ready.read_bytes())
    except FileNotFoundError:
        return {}
    return found


@dataclass(frozen=True)
class Endpoint:
    """Where the server answers, and the file that holds its key."""

    base_url: str
    api_key_file: str


class EmbeddedServer:
    """Starts, watches and ends one server process."""

    def __init__(
        self,
        service: ServiceSection,
        *,
        model: str,
        data_dir: Path,
        otlp_endpoint: str | None = None,
    ) -> None:
        """`otlp_endpoint`: where its spans go, instead of where the environment says."""
        self._service = service
        self._model = model
        self._data_dir = data_dir
        self._environment = environment(otlp_endpoint)
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> Endpoint:
        """Raises the server's own complaint (unknown base, no disk space, port in use)."""
        endpoint = await self._launch()
        self._port = int(endpoint.base_url.rsplit(":", 1)[1])
        self._watch = asyncio.create_task(self._restart_when_dead())
        return endpoint

    async def _launch(self) -> Endpoint:
        """What another process keeps in the folder stays; the server waits for that one to end."""
        self._data_dir.mkdir(parents=True, exist_ok=True)
        ready = self._data_dir / "ready.json"
        if not is_locked(self._data_dir / SERVER_LOCK):
            ready.unlink(missing_ok=True)  # of a server that has ended
        self._process = subprocess.Popen(
            self._command(ready),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env=self._environment,
        )
        try:
            async with asyncio.timeout(START_S):
                while (found := _said(ready)).get("pid") != self._process.pid:
                    self._raise_if_dead()
                    await asyncio.sleep(0.05)
        except TimeoutError as e:
            self.stop()
            raise ServiceUnavailableError("the embedded server did not come up in time") from e
        return Endpoint(found["base_url"], found["api_key_file"])

    def _command(self, ready: Path) -> list[str]:
        command = [sys.executable, "-m", "crucible_tinkex", "serve", "--exit-with-parent"]
        command += ["--model", self._model, "--port", str(self._port)]
        command += ["--data-dir", str(self._data_dir), "--ready-file", str(ready)]
        command += ["--dtype", self._service.dtype, "--device", self._service.device]
        if self._service.threads:
            command += ["--threads", str(self._service.threads)]
        return command

    def _raise_if_dead(self) -> None:
        code = self._process.poll() if self._process else None
        if code is not None:
            error = CrucibleError("the embedded server could not start; its message is above")
            error.exit_code = code if code in OWN_EXIT_CODES else 4
            raise error

    async def _restart_when_dead(self) -> None:
        for _ in range(MAX_RESTARTS):
            while self._process is not None and self._process.poll() is None:
                await asyncio.sleep(0.25)
            log.error("the embedded server died; starting it again")
            await self._launch()

    def stop(self) -> None:
        """End the process; its checkpoints stay."""
        if self._watch:
            self._watch.cancel()
        if self._process is None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()
