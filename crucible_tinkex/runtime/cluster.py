"""The connection to Ray and the actors that live on it; what a driver holds while it works.

Guarantees: starting Ray never blocks the event loop, ends by a deadline and can be cancelled at
once; what goes wrong is a `RayStartError` with Ray's reason in a line; a cluster that goes away
during a run is a `ClusterLostError` before Ray ends the process by itself. A `Runtime` may serve
several sweeps one after another: its actors stay warm. All actors are owned by the driver (none is
detached), so a driver's death leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import ray
from ray.actor import ActorHandle

from crucible_tinkex.config import RunSection
from crucible_tinkex.errors import ClusterLostError, ConfigError, CrucibleError, RayStartError
from crucible_tinkex.runtime.actors.handles import answer
from crucible_tinkex.runtime.actors.registry_actor import RegistryActor
from crucible_tinkex.runtime.actors.session_actor import SessionActor
from crucible_tinkex.runtime.actors.telemetry_actor import TelemetryActor
from crucible_tinkex.runtime.placement import Turns, driver_node, session_cores
from crucible_tinkex.runtime.ports import Packing

T = TypeVar("T")

STORE_BYTES = 256 * 1024 * 1024
"""Ray's object store holds only the tokenised dataset."""
START_S = 180.0
"""Ray is up in 8 seconds on a quiet machine; a loaded one takes ten times as long."""
ACTORS_S = 90.0
"""Its actors follow in a second."""
HEAD_PORT = "RAY_GCS_SERVER_PORT"
VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",
}
"""The last: else Ray waits for workers in C++, where neither a deadline nor Ctrl-C reaches it."""
PROBE_S = 5.0
POLL_S = 2.0
LOST_S = 20.0
"""A head that restarts answers again sooner; Ray ends the process after 60 seconds."""
GRACE_S = 20.0
ADVICE = "start one with `ray start --head`, or leave the address out to run on this machine"


CALLS_AT_ONCE = 100_000
"""Calls of a session actor wait for the service nearly all the time; the pool bounds them."""


class Runtime:
    """A cluster connection with one registry actor, one telemetry actor, and session actors."""

    def __init__(self, address: str | None = None) -> None:
        """Blocks until Ray is up. Raises `RayStartError`; `ConfigError` for an address that cannot
        be one."""
        self._started_ray = not ray.is_initialized()
        connect(address)
        self._closed = threading.Event()
        self._lost = False
        self._turns = Turns()
        self._idle: dict[bool, list[ActorHandle[Any]]] = {True: [], False: []}
        self.registry = _actor(RegistryActor, driver_node(), max_restarts=-1)
        self.telemetry = _actor(TelemetryActor, driver_node(), max_restarts=-1)

    @classmethod
    async def start(cls, address: str | None = None, *, deadline_s: float = START_S) -> Runtime:
        """The same, while the event loop goes on; to cancel it takes no time.

        Ray is started in a thread, which stays until `close`: Linux ends a child with the *thread*
        that started it. After a cancellation the thread ends what it has started by then; a process
        that ends meanwhile takes it along.
        """
        started: Future[Runtime] = Future()
        with _environment(address):
            threading.Thread(target=cls._start, args=(address, started), daemon=True).start()
            try:
                async with asyncio.timeout(deadline_s):
                    return await asyncio.wrap_future(started)
            except TimeoutError:
                raise RayStartError(_why(address, f"no answer within {deadline_s:.0f} s")) from None
            finally:
                started.cancel()

    @classmethod
    def _start(cls, address: str | None, started: Future[Runtime]) -> None:
        """The thread of `start`."""
        try:
            runtime = cls(address)
        except CrucibleError as e:
            if started.set_running_or_notify_cancel():
                started.set_exception(e)
            return
        if started.set_running_or_notify_cancel():
            started.set_result(runtime)
            runtime._closed.wait()
        else:
            runtime.close()

    async def ready(self, *, deadline_s: float = ACTORS_S) -> None:
        """Wait until the actors that every sweep needs answer: Ray starts a worker process that
        dies again for ever, and says nothing. Raises `RayStartError`."""
        actors: tuple[Any, ...] = (self.registry, self.telemetry)
        try:
            async with asyncio.timeout(deadline_s):
                await asyncio.gather(*(answer(actor.pid.remote()) for actor in actors))
        except TimeoutError:
            logs = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "session_latest", "logs")
            raise RayStartError(
                f"Ray's worker processes do not start: none answered within {deadline_s:.0f} s; "
                f"see raylet.out and python-core-worker-*.log in {logs}"
            ) from None
        except ClusterLostError as e:
            raise RayStartError(f"Ray's worker processes do not start: {e.message}") from e

    @staticmethod
    def size() -> tuple[int, int]:
        """The cluster's living nodes and their cores."""
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        return len(nodes), int(sum(node["Resources"].get("CPU", 0) for node in nodes))

    def packing(self, run: RunSection, sessions: int, *, reachable: bool = False) -> Packing:
        """How `sessions` at the same time are spread over actors."""
        slots = max(1, min(run.most_concurrent, sessions))
        per_actor = run.sessions_per_actor
        if per_actor == "auto":
            per_actor = -(-slots // session_cores(reachable=reachable))
        return Packing(slots, min(int(per_actor), slots), run.max_concurrent == "auto")

    def session_actor(self, *, reachable: bool) -> ActorHandle[Any]:
        """A warm session actor if there is one, else a new one."""
        idle = self._idle[reachable]
        return idle.pop() if idle else self._new_actor(reachable)

    def warm(self, packing: Packing, *, reachable: bool = False) -> None:
        """Have the first session actors started before they are needed."""
        idle = self._idle[reachable]
        while len(idle) < min(packing.actors, self.starting_at_once(reachable=reachable)):
            idle.append(self._new_actor(reachable))

    def _new_actor(self, reachable: bool) -> ActorHandle[Any]:
        """Not restarted by Ray: the pool replaces it, and its trials become new attempts. Where the
        service does not answer on other nodes, it stays on the driver's."""
        nodes = self._turns.next() if reachable else driver_node()
        return _actor(SessionActor, nodes, max_restarts=0, max_concurrency=CALLS_AT_ONCE)

    def keep(self, actor: ActorHandle[Any], *, reachable: bool) -> None:
        """Give a healthy session actor back for the next sweep."""
        self._idle[reachable].append(actor)

    @staticmethod
    def starting_at_once(*, reachable: bool) -> int:
        """Starting an actor is a second of CPU: more than two per core only delay each other."""
        return 2 * session_cores(reachable=reachable)

    @staticmethod
    def share(value: Any) -> ray.ObjectRef[Any]:
        """Put a value in the object store once, for all actors."""
        return ray.put(value)

    async def watch(self, *, poll_s: float = POLL_S, lost_s: float = LOST_S) -> NoReturn:
        """Raise `ClusterLostError` once the cluster's head has not answered for `lost_s`.

        Actors still answer then, so a driver that drains at once saves what it has. Misses are
        counted, not seconds: a driver that was stopped for a while blames nobody.
        """
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        misses = 0
        while misses * poll_s < lost_s:
            await asyncio.sleep(poll_s)
            misses = 0 if await _listens(host, int(port), poll_s) else misses + 1
        self._lost = True
        raise ClusterLostError(
            f"the Ray cluster's head at {host}:{port} has not answered for {lost_s:.0f} s; what was"
            " saved is safe: start the cluster again and run the same command to continue"
        )

    async def unless_lost(
        self, work: Awaitable[T], *, drain: Callable[[], object], grace_s: float = GRACE_S
    ) -> T:
        """The result of `work`. Raises `ClusterLostError` when the cluster is lost meanwhile, after
        `drain` was called and `work` had `grace_s` to save what it can; it is cancelled then."""
        working = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(self.watch())
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                drain()
                await asyncio.wait({working}, timeout=grace_s)
                watching.result()
            return await working
        finally:
            working.cancel()
            watching.cancel()
            await asyncio.wait({working, watching}, timeout=1)

    def close(self) -> None:
        """End the actors; leave Ray if this runtime started it. Waits for nothing of a cluster that
        is lost: what is left of it ends with this process."""
        if not self._lost:
            for actor in (self.registry, self.telemetry, *self._idle[True], *self._idle[False]):
                ray.kill(actor)
            if self._started_ray:
                _leave()
            self._closed.set()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def connect(address: str | None) -> None:
    """Join the cluster at `address` (or `RAY_ADDRESS`, as inside a job), else start one here."""
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        _probe(address)
        options["address"] = address
    else:
        options |= {"address": "local", "include_dashboard": False}
        options["object_store_memory"] = STORE_BYTES
    with _environment(address):
        try:
            _init(address, options)
        except RayStartError:  # once more: a loaded machine needs longer than Ray gives itself
            _init(address, options)


def _init(address: str | None, options: Mapping[str, Any]) -> None:
    try:
        ray.init(**options)
    except Exception as e:  # Ray's own are of many kinds, RuntimeError among them
        _leave()
        raise RayStartError(_why(address, str(e) or repr(e))) from e


def _leave() -> None:
    """Leave Ray, with the garbage collector at rest: it runs in whichever thread makes garbage (one
    that draws the live table), and a reference of Ray's that it drops in the middle of the shutdown
    makes Ray end the process with exit code 1."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collecting:
            gc.enable()


@contextlib.contextmanager
def _environment(address: str | None) -> Iterator[None]:
    """What Ray is told by environment variables; the user's own count. Set by the thread that
    starts other processes: the system may not find what another thread is changing.

    Ray is told the port of its head, else it waits up to 30 seconds for the head to name one, in
    C++, where neither a deadline nor Ctrl-C reaches it.
    """
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    if address or os.environ.get("RAY_ADDRESS") or HEAD_PORT in os.environ:
        yield
        return
    with socket.create_server(("", 0)) as free:
        os.environ[HEAD_PORT] = str(free.getsockname()[1])
    try:
        yield
    finally:
        del os.environ[HEAD_PORT]


def _why(address: str | None, reason: str) -> str:
    """Ray's reason in a line, and what to do."""
    first = next((line.strip() for line in reason.splitlines() if line.strip()), "no reason given")
    if address:
        return (
            f"cannot join the Ray cluster at {address}: {first}; give the head's own port (6379, "
            "not the dashboard's), the same Ray and Python version, and the cluster's token"
        )
    place = os.environ.get("RAY_TMPDIR", "/tmp")
    return (
        f"Ray did not start on this machine: {first}; it needs memory, CPU and space in {place}: "
        "see to them and run the same command again"
    )


def _probe(address: str) -> None:
    """Refuse an address where nothing listens: Ray would try for minutes, and log all of it."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ConfigError(
            f"the Ray address {address!r} must be HOST:PORT of the head (its port 6379), or auto; "
            "to run on a cluster from outside, use `crucible submit`"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S).close()
    except (OSError, OverflowError) as e:
        raise RayStartError(f"no Ray cluster answers at {address}: {e}; {ADVICE}") from None


async def _listens(host: str, port: int, timeout_s: float) -> bool:
    """Whether something accepts a connection there."""
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host.strip("[]"), port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


_REMOTE: dict[type[Any], Any] = {
    c: ray.remote(c) for c in (RegistryActor, TelemetryActor, SessionActor)
}
"""Made once: Ray exports a class to the cluster again for every object like this."""


def _actor(cls: type[Any], nodes: Any, **options: Any) -> ActorHandle[Any]:
    """Ray repeats none of an actor's calls (`max_task_retries=0`)."""
    placed = {"num_cpus": 0, "max_task_retries": 0, "scheduling_strategy": nodes}
    handle: ActorHandle[Any] = _REMOTE[cls].options(**placed, **options).remote()
    return handle
