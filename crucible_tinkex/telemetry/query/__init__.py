"""Reading events and evaluation rows, by filters and by SQL."""

from crucible_tinkex.telemetry.query.reading import (
    query,
    read_evaluations,
    read_events,
    scan_events,
    waiting,
)

__all__ = ["query", "read_evaluations", "read_events", "scan_events", "waiting"]
