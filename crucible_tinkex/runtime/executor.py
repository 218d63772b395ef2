"""A run on Ray: the registry and telemetry actors of a runtime as ports, and a launcher of hosts.

Sessions run on every node of the cluster where the service can be reached from there, and on the
driver's node where it listens on this machine only.
"""

from __future__ import annotations

from crucible_tinkex.client.resolved import ResolvedService
from crucible_tinkex.config import RunSection
from crucible_tinkex.events import EventWriter
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.runtime.actors.handles import RegistryHandle, TelemetryHandle
from crucible_tinkex.runtime.actors.session_actor import RunContext
from crucible_tinkex.runtime.cluster import Runtime
from crucible_tinkex.runtime.hosts import RayLauncher
from crucible_tinkex.runtime.ports import Packing
from crucible_tinkex.telemetry.bridge.catalogue import Handler
from crucible_tinkex.telemetry.tracing.asked import Tracing
from crucible_tinkex.training.data import SweepData


class RayExecutor:
    """Where one run's sessions run, and what keeps its memory."""

    def __init__(
        self,
        runtime: Runtime,
        paths: SweepPaths,
        *,
        run_id: str,
        service: ResolvedService,
        data: SweepData,
        writer: EventWriter,
        tracing: Tracing | None = None,
        handler: Handler | None = None,
    ) -> None:
        """`handler`, in this process, hears what the sessions do."""
        self._runtime = runtime
        self._reachable = not service.is_local
        self.registry = RegistryHandle(runtime.registry, paths, run_id)
        self.telemetry = TelemetryHandle(runtime.telemetry, paths)
        context = RunContext(
            run_id=run_id,
            sweep_id=writer.sweep_id,
            experiment_id=writer.experiment_id,
            paths=paths,
            service=service,
            registry=runtime.registry,
            telemetry=runtime.telemetry,
            tracing=tracing,
            is_heard=handler is not None,
        )
        self.launcher = RayLauncher(
            runtime, context, data, reachable=self._reachable, handler=handler
        )

    def packing(self, run: RunSection, sessions: int) -> Packing:
        """How `sessions` at the same time are spread over processes."""
        return self._runtime.packing(run, sessions, reachable=self._reachable)

    def renew(self, data: SweepData) -> None:
        """Hosts that are launched from now on are given these rows."""
        self.launcher.data = self._runtime.share(data)

    async def close(self) -> None:
        """Deliver what telemetry holds, then give the journal free."""
        try:
            await self.telemetry.close()
        finally:
            await self.registry.close()
