"""The event log on disk: write-ahead log, Parquet parts, snapshot, compaction."""

from crucible_tinkex.telemetry.log.event_log import EventLog

__all__ = ["EventLog"]
