"""Records of TensorBoard's files: their framing, scalars, and where a file ends well.

A record is its length, the length's checksum, the message, its checksum. Nothing of a record tells
a reader where the next begins, so whoever appends must first cut off a torn end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import CorruptLogError
from crucible_tinkex.telemetry.tensorboard.without_torch import without_torch

with without_torch():
    from tensorboardX.proto.event_pb2 import Event as Record
    from tensorboardX.proto.event_pb2 import SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import masked_crc32c

Key = tuple[str, int]
"""Tag and step of a scalar."""

START_TAG = "_hparams_/session_start_info"
_HEAD = struct.Struct("<Q")
_CHECK = struct.Struct("<I")


@dataclass
class Content:
    """What a file holds. `values` are the scalars' bytes as stored, so that NaN equals itself."""

    records: list[Any] = field(default_factory=list)
    values: dict[Key, set[bytes]] = field(default_factory=dict)
    announced: bool = False
    """It has the hyper-parameters of its attempt."""
    size: int = 0
    """The bytes of its whole records."""

    def add(self, record: Any) -> None:
        self.records.append(record)
        for value in record.summary.value:
            self.announced = self.announced or value.tag == START_TAG
        key = key_of(record)
        if key is not None:
            self.values.setdefault(key, set()).add(_stored(record))


def header(time_s: float) -> Any:
    return Record(wall_time=time_s, file_version="brain.Event:2")


def restart_mark(time_s: float, step: int) -> Any:
    """Tells a TensorBoard that follows the run to drop what it has from `step` on."""
    return Record(wall_time=time_s, step=step, session_log=SessionLog(status=SessionLog.START))


def scalar(time_s: float, tag: str, step: int, value: float) -> Any:
    values = [Summary.Value(tag=tag, simple_value=value)]
    return Record(wall_time=time_s, step=step, summary=Summary(value=values))


def key_of(record: Any) -> Key | None:
    """Of a scalar's record."""
    values = record.summary.value
    if len(values) == 1 and values[0].WhichOneof("value") == "simple_value":
        return values[0].tag, record.step
    return None


def has(content: Content, record: Any) -> bool:
    """Whether a scalar's record is in a file, as it is stored."""
    key = key_of(record)
    return key is not None and _stored(record) in content.values.get(key, ())


def _stored(record: Any) -> bytes:
    return struct.pack("<f", record.summary.value[0].simple_value)


def frames(records: Iterable[Any]) -> bytes:
    return b"".join(map(_frame, records))


def _frame(record: Any) -> bytes:
    data = record.SerializeToString()
    return b"".join((_head(len(data)), data, _CHECK.pack(masked_crc32c(data))))


@lru_cache(maxsize=1024)
def _head(length: int) -> bytes:
    """Scalars come in few lengths, and the checksum is the dearest part of writing one."""
    head = _HEAD.pack(length)
    return head + _CHECK.pack(masked_crc32c(head))


def read_content(path: Path) -> Content:
    """The whole records of a file; a torn end is left out. Raises `OSError`, and `CorruptLogError`
    for damage."""
    data = path.read_bytes()
    content = Content()
    while content.size + 16 <= len(data):
        at = content.size + 12
        (length,) = _HEAD.unpack_from(data, content.size)
        if data[content.size : at] != _head(length):
            raise CorruptLogError(f"{path} is damaged at byte {content.size}")
        if at + length + 4 > len(data):
            break
        message = data[at : at + length]
        if _CHECK.unpack_from(data, at + length)[0] != masked_crc32c(message):
            raise CorruptLogError(f"{path} is damaged at byte {at}")
        content.add(Record.FromString(message))
        content.size = at + length + 4
    return content
