"""What becomes of Ray's errors at the border, without a Ray."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RaySystemError, RayTaskError

from crucible_tinkex.errors import (
    ClusterLostError,
    HostLostError,
    StaleAttemptError,
    StorageError,
)
from crucible_tinkex.runtime.actors.handles import RegistryHandle, answer, reason, repeated

AWAY = ActorUnavailableError("restarting", None)


async def raising(error: Exception) -> Any:
    raise error


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("advance", "a traceback", cause)


async def test_errors_of_ours_come_through_unchanged() -> None:
    with pytest.raises(StaleAttemptError, match="attempt 1"):
        await answer(raising(task_error(StaleAttemptError("attempt 1 was replaced"))))


@pytest.mark.parametrize(
    "error", [ActorDiedError(), AWAY, RaySystemError("no GCS"), task_error(ValueError("x"))]
)
async def test_errors_of_ray_get_a_name(error: Exception) -> None:
    with pytest.raises(HostLostError):
        await answer(raising(error), lost=HostLostError)
    with pytest.raises(ClusterLostError):
        await answer(raising(error))


def test_the_reason_is_one_line_without_colours() -> None:
    text = (
        "\x1b[36mThe actor died in its creation task\x1b[39m\n  File x\nImportError: no crucible\n"
    )
    assert reason(RuntimeError(text)) == (
        "The actor died in its creation task ... ImportError: no crucible"
    )
    assert reason(RuntimeError()) == "RuntimeError"


class RestartingActor:
    """An actor that is away for the first calls."""

    def __init__(self, away: int) -> None:
        self.heard: list[Any] = []
        self._away = away
        self.calls = self

    def remote(self, paths: Any, run_id: str, calls: Any) -> Awaitable[Any]:
        self.heard += [(method, *args) for method, args in calls]
        return raising(AWAY) if len(self.heard) <= self._away else self._ok(len(calls))

    async def _ok(self, calls: int) -> list[str]:
        return ["granted"] * calls


async def test_a_call_that_is_repeated_is_the_same_operation() -> None:
    actor: Any = RestartingActor(away=2)
    handle = RegistryHandle(actor, "paths", "run")  # type: ignore[arg-type]
    assert str(await handle.start_attempt("t")) == "granted"
    assert len(actor.heard) == 3 and len(set(actor.heard)) == 1, "one grant, asked for three times"
    await handle.start_attempt("t")
    assert len(set(actor.heard)) == 2, "another call is another attempt"


async def test_an_actor_that_stays_away_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="the registry actor did not come back"):
        await repeated(lambda: raising(AWAY), what="registry actor", retry_s=0.0)


async def test_what_is_no_restart_is_not_repeated() -> None:
    calls = []

    def call() -> Awaitable[Any]:
        calls.append(1)
        return raising(RaySystemError("no GCS"))

    with pytest.raises(ClusterLostError, match="no GCS"):
        await repeated(call, what="registry actor")
    assert len(calls) == 1
