"""The server of a sweep that runs, for what is done with its weights meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from nano_sweep import make_experiment

import crucible_tinkex as ct
import crucible_tinkex.weights.evaluating as evaluating
import crucible_tinkex.weights.service as services
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import SERVER_LOCK, SweepPaths
from crucible_tinkex.storage import Lock
from crucible_tinkex.training.recipes.recipe import Evaluation


@pytest.fixture
def served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[SweepPaths, contextlib.ExitStack]]:
    """A sweep that runs, and says where its server is; the stack, closed, ends both."""
    monkeypatch.setattr(services, "POLL_S", 0.01)
    paths = SweepPaths.of(tmp_path, "swept")
    paths.service.mkdir(parents=True)
    (paths.service / "key").write_text("tml-a-key-of-the-test-0000000000")
    ready = {"base_url": "http://127.0.0.1:1", "api_key_file": str(paths.service / "key")}
    (paths.service / "ready.json").write_text(json.dumps(ready))
    with contextlib.ExitStack() as run:
        for held in (paths.lock, paths.service / SERVER_LOCK):
            run.enter_context(contextlib.closing(Lock(held)))
        yield paths, run


async def test_what_uses_the_server_of_a_run_ends_with_the_run(
    tmp_path: Path, served: tuple[SweepPaths, contextlib.ExitStack]
) -> None:
    paths, run = served
    experiment = make_experiment(tmp_path / "data")
    async with services.service_of(paths, experiment):
        await asyncio.sleep(0.05)
    with pytest.raises(services.RunEndedError, match="'swept' has ended"):
        async with asyncio.timeout(5), services.service_of(paths, experiment):
            run.close()
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError):  # of somebody else
        async with services.service_of(paths, experiment):
            raise TimeoutError


def test_a_chat_with_the_server_of_a_run_is_told_of_its_end(
    tmp_path: Path, served: tuple[SweepPaths, contextlib.ExitStack]
) -> None:
    """The portal that holds its service open takes the cancellation for the end of the chat."""
    paths, run = served
    service = services.service_of(paths, make_experiment(tmp_path / "data"))
    with (
        pytest.raises(services.RunEndedError, match="'swept' has ended"),
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(service),
    ):
        run.close()
        time.sleep(0.2)


async def test_what_an_earlier_server_said_is_not_believed(
    tmp_path: Path, served: tuple[SweepPaths, contextlib.ExitStack]
) -> None:
    """It lies in the folder until the run that begins has started its own."""
    paths, run = served
    run.close()
    with contextlib.closing(Lock(paths.lock)), pytest.raises(ConfigError, match="just starting"):
        async with services.service_of(paths, make_experiment(tmp_path / "data")):
            pass


def test_an_evaluation_begins_again_where_the_run_ended(
    sweep: ct.Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, calls = evaluating._evaluated, []

    async def once_refused(*arguments: object) -> Evaluation:
        calls.append(arguments)
        if len(calls) == 1:
            raise services.RunEndedError("the run has ended")
        return await measure(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluating, "_evaluated", once_refused)
    data = sweep.paths.root.parent.parent / "eval.jsonl"
    found = sweep.evaluate(data, "1", max_rows=2)
    assert len(calls) == 2 and not found.cached and len(found.rows) == 2
