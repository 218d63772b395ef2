"""A real server that speaks S3, as a process, from an environment of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

REQUIREMENT = "moto[s3,server]==5.2.5"
BUCKET = "crucible-test"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
}


def s3_command() -> Path:
    """The server's command; its environment is made when it is missing, in `$CRUCIBLE_SDK_VENVS` or
    the user's cache. Raises RuntimeError where no package index answers."""
    chosen = os.environ.get("CRUCIBLE_SDK_VENVS")
    root = Path(chosen) if chosen else Path.home() / ".cache" / "crucible_tinkex" / "sdk"
    folder = root / f"s3-{REQUIREMENT.rpartition('=')[2]}-py{sys.version_info.minor}"
    if not (folder / "installed").exists():
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(folder / "bin" / "python"), "-m", "pip", "install", "-q", REQUIREMENT])
        (folder / "installed").touch()
    return folder / "bin" / "moto_server"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"cannot install {REQUIREMENT}:\n{done.stderr[-1000:]}")


@contextlib.contextmanager
def s3_served(bucket: str) -> Iterator[str]:
    """The endpoint of a server that has one empty bucket."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [str(s3_command()), "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(
        command,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            _make_bucket(f"{url}/{bucket}", process)
            yield url
        finally:
            process.kill()


def _make_bucket(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT")).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
