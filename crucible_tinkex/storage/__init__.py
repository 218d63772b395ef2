"""Durable storage: files, a lock of one owner, an append-only log, objects in buckets."""

from crucible_tinkex.storage.files import (
    Files,
    check_writable,
    fsync_folder,
    make_folder,
    storage_errors,
    write_atomic,
)
from crucible_tinkex.storage.lock import Lock, is_locked
from crucible_tinkex.storage.log import (
    SegmentLog,
    read_log,
    read_segment,
    segment_number,
    segments,
)
from crucible_tinkex.storage.objects import ObjectInfo, Objects

__all__ = [
    "Files",
    "Lock",
    "ObjectInfo",
    "Objects",
    "SegmentLog",
    "check_writable",
    "fsync_folder",
    "is_locked",
    "make_folder",
    "read_log",
    "read_segment",
    "segment_number",
    "segments",
    "storage_errors",
    "write_atomic",
]
