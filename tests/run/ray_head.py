"""A Ray head of one test alone: own folder, ports and token; other Rays of the machine live on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """`ray start --head`, its jobs finding our python. `environment` has its token."""

    address: str
    environment: dict[str, str]

    @property
    def without_token(self) -> dict[str, str]:
        return {k: v for k, v in self.environment.items() if not k.startswith("RAY_AUTH")}

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "ray"), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def ray_head(folder: Path) -> Iterator[Head]:
    """With token authentication, as Ray starts by itself. Ends by ending its own processes:
    `ray stop` would end every Ray of the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    dashboard = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--port", str(free_port())]
    command += ["--dashboard-port", str(dashboard), "--disable-usage-stats"]
    command += ["--dashboard-agent-listen-port", str(free_port()), "--num-cpus", "2"]
    command += ["--object-store-memory", str(80 << 20)]
    head = Head(f"http://127.0.0.1:{dashboard}", environment)
    with open(folder / "head.log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        _wait_until_up(head, process, folder / "head.log")
        yield head
    finally:
        if process.poll() is None:
            parent = psutil.Process(process.pid)
            mine = [parent, *parent.children(recursive=True)]
            for each in mine:
                each.kill()
            psutil.wait_procs(mine, timeout=10)
        process.wait()


def _wait_until_up(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the dashboard answers; 401 is an answer."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{head.address}/api/version", timeout=5).close()
            return
        except urllib.error.HTTPError as e:
            e.close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())
