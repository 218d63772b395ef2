"""Where a session's events go: nowhere, or into an event log like a sweep's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from crucible_tinkex.events import Event, EventWriter
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.telemetry.sender import BufferedSink

if TYPE_CHECKING:
    from crucible_tinkex.telemetry.recorder import Recorder


class NoSink:
    """An `EventSink` that keeps nothing."""

    def emit(self, kind: str, **fields: Any) -> None:
        return None

    async def flush(self) -> None:
        return None

    async def aclose(self) -> None:
        return None


class StoredSink(BufferedSink):
    """An `EventSink` into `<storage>/<experiment>/events`, with TensorBoard beside it."""

    def __init__(self, storage: str | Path, experiment_id: str) -> None:
        from crucible_tinkex.telemetry.recorder import Recorder

        self._recorder: Recorder = Recorder(SweepPaths.of(storage, experiment_id))
        writer = EventWriter(sweep_id=experiment_id, experiment_id=experiment_id)
        super().__init__(writer, self._record)

    async def _record(self, events: list[Event]) -> int:
        return self._recorder.record(events)

    async def aclose(self) -> None:
        try:
            await super().aclose()
        finally:
            self._recorder.close()


Sink = NoSink | StoredSink


def sink_of(storage: str | Path | None, experiment_id: str) -> Sink:
    """Raises `SweepBusyError` where another session stores the same experiment just now."""
    return NoSink() if storage is None else StoredSink(storage, experiment_id)
