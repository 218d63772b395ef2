"""The connection to Ray and the actors that live on it; what a driver holds while it works.

A `Runtime` may serve several sweeps one after another: its actors stay warm. All actors are owned
by the driver (none is detached), so a driver's death leaves nothing behind. Everything that touches
local files or the embedded server is placed on the driver's node.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from crucible_tinkex.config import RunSection
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.runtime.registry_actor import RegistryActor
from crucible_tinkex.runtime.session_actor import SessionActor
from crucible_tinkex.runtime.telemetry_actor import TelemetryActor

STORE_BYTES = 256 * 1024 * 1024
"""Ray's object store holds only the tokenised dataset."""


def connect(address: str | None) -> None:
    """Join the cluster at `address` (or `RAY_ADDRESS`, as inside a job), else start one here."""
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        try:
            ray.init(address=address, **common)
        except ConnectionError as e:
            raise ConfigError(f"no Ray cluster answers at {address}: {e}") from e
    else:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            **common,
        )


def driver_node() -> NodeAffinitySchedulingStrategy:
    node_id = ray.get_runtime_context().get_node_id()
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


@dataclass(frozen=True)
class Packing:
    """`slots` sessions at the same time, `per_actor` of them in a process."""

    slots: int
    per_actor: int

    @property
    def actors(self) -> int:
        return -(-self.slots // self.per_actor)


class Runtime:
    """A cluster connection with one registry actor, one telemetry actor, and session actors."""

    def __init__(self, address: str | None = None) -> None:
        self._started_ray = not ray.is_initialized()
        connect(address)
        self.registry = _actor(RegistryActor, max_restarts=-1)
        self.telemetry = _actor(TelemetryActor, max_restarts=-1)
        self._idle: list[ActorHandle[Any]] = []

    def session_actor(self, *, concurrency: int) -> ActorHandle[Any]:
        """A warm session actor if there is one, else a new one."""
        return self._idle.pop() if self._idle else self._new_actor(concurrency)

    def packing(self, run: RunSection, sessions: int) -> Packing:
        """How `sessions` at the same time are spread over actors."""
        slots = min(run.max_concurrent, sessions)
        per_actor = run.sessions_per_actor
        if per_actor == "auto":
            per_actor = -(-slots // self.cpus())
        return Packing(slots, min(int(per_actor), slots))

    def warm(self, packing: Packing) -> None:
        """Have the first session actors started before they are needed."""
        while len(self._idle) < min(packing.actors, self.starting_at_once()):
            self._idle.append(self._new_actor(packing.per_actor))

    @staticmethod
    def _new_actor(concurrency: int) -> ActorHandle[Any]:
        """Not restarted by Ray: the pool replaces it, and its trials become new attempts."""
        return _actor(SessionActor, max_restarts=0, max_concurrency=1000 + 2 * concurrency)

    def keep(self, actor: ActorHandle[Any]) -> None:
        """Give a healthy actor back for the next sweep."""
        self._idle.append(actor)

    @staticmethod
    def cpus() -> int:
        """Cores of the cluster."""
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return max(1, int(resources.get("CPU", 1)))

    @classmethod
    def starting_at_once(cls) -> int:
        """Starting an actor is a second of CPU: more than two per core only delay each other."""
        return 2 * cls.cpus()

    @staticmethod
    def kill(actor: ActorHandle[Any]) -> None:
        ray.kill(actor)

    @staticmethod
    def share(value: Any) -> ray.ObjectRef[Any]:
        """Put a value in the object store once, for all actors."""
        return ray.put(value)

    def close(self) -> None:
        """End the actors; leave Ray if this runtime started it."""
        for actor in (self.registry, self.telemetry, *self._idle):
            ray.kill(actor)
        if self._started_ray:
            ray.shutdown()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _actor(cls: type[Any], **options: Any) -> ActorHandle[Any]:
    """An actor on the driver's node. Ray repeats none of its calls (`max_task_retries=0`)."""
    placed = {"num_cpus": 0, "max_task_retries": 0, "scheduling_strategy": driver_node()}
    remote: Any = ray.remote(cls)
    handle: ActorHandle[Any] = remote.options(**placed, **options).remote()
    return handle
