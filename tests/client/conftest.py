from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from scripted_service import FAST, ScriptedService

from crucible_tinkex.client import TinkexService
from crucible_tinkex.client.model.training_client import TinkexTraining
from crucible_tinkex.protocol.wire import LoraConfig

KEY = "tml-canary-7f3a9c"
SERVE = """
import sys
from pathlib import Path
from crucible_tinkex.server.web.serve import ServeOptions, serve
folder = Path(sys.argv[1])
serve(ServeOptions(data_dir=folder / "data", model="nano", ready_file=folder / "ready.json",
                   dtype="fp32", threads=1, exit_with_parent=True))
"""


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedService]:
    async with ScriptedService() as service:
        yield service


@pytest.fixture
async def service(scripted: ScriptedService) -> AsyncIterator[TinkexService]:
    async with TinkexService(scripted.url, settings=FAST) as made:
        yield made


@pytest.fixture
async def model(service: TinkexService) -> TinkexTraining:
    return await service.create_training(base_model="m", lora=LoraConfig(rank=2, seed=1))


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    return KEY


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Of localhost and service.test, and its key; nobody trusts it yet."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl program to make a certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = "subjectAltName=DNS:localhost,DNS:service.test"
    where = ["-keyout", str(key), "-out", str(cert), "-addext", names]
    subprocess.run([openssl, "req", *options.split(), *where], check=True, capture_output=True)
    return cert, key


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An embedded server in its own process: its base_url and api_key_file."""
    pytest.importorskip("torch", reason="the embedded server needs the extra [local]")
    folder = tmp_path_factory.mktemp("embedded")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(folder)],
            stdin=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        until = time.monotonic() + 180
        while not (folder / "ready.json").exists():
            assert process.poll() is None and time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.05)
        yield json.loads((folder / "ready.json").read_text())
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)
