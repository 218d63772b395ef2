"""Real parts of the server on the `nano` base, one torch thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from server_client import Client, make_rows

from crucible_tinkex.errors import OperationFailedError
from crucible_tinkex.server import bases
from crucible_tinkex.server.engine.engine import TorchEngine
from crucible_tinkex.server.operations import TakeSnapshot
from crucible_tinkex.server.store.store import Store


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRUCIBLE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def nano(cache: Path) -> bases.Base:
    return bases.ensure_base("nano")


@pytest.fixture
def start(nano: bases.Base, tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Starts engines on a data folder of the test; closes all of them."""
    engines: list[TorchEngine] = []

    def begin(dtype: torch.dtype = torch.float32, base: bases.Base = nano, **more: Any) -> Client:
        engines.append(TorchEngine(base, Store(tmp_path / "data"), dtype=dtype, **more))
        return Client(engines[-1])

    yield begin
    for engine in engines:
        with suppress(OperationFailedError):  # a test ended its thread
            engine.close()


@pytest.fixture
def client(start: Callable[..., Client]) -> Client:
    """An engine with the model `m`, trained one step, and its snapshot `snap`."""
    client = start()
    client.create("m", rank=4)
    client.step("m", make_rows(1, (9, 12)), learning_rate=3e-3)
    client.one(TakeSnapshot("m", "snap"))
    return client
