"""When the requests of a session were asked and answered, and that as a Perfetto trace.

Guarantees: memory is bounded, the oldest requests are forgotten first; a trace opens in Perfetto
(ui.perfetto.dev): one track per model or sampling session, and more of them where its requests
overlap, because the slices of one track must nest. Kept in memory only. Owned by the event loop's
thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.server.operations import Operation, Outcome

MAX_SLICES = 100_000
_VARINT, _BYTES = 0, 2
# Field numbers of perfetto.protos: Trace, TracePacket, TrackEvent, TrackDescriptor.
_PACKET = 1
_TIMESTAMP, _SEQUENCE_ID, _TRACK_EVENT, _TRACK_DESCRIPTOR = 8, 10, 11, 60
_TYPE, _TRACK_UUID, _CATEGORIES, _NAME = 9, 11, 22, 23
_DESCRIPTOR_UUID, _DESCRIPTOR_NAME, _DESCRIPTOR_PARENT = 1, 2, 5
_BEGIN, _END = 1, 2


@dataclass(frozen=True, slots=True)
class Slice:
    """One request, from its arrival to its answer; `track` is the model's or the sampler's id."""

    session_id: str
    track: str
    name: str
    start_ns: int
    end_ns: int
    failed: bool


class Timeline:
    def __init__(self, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._slices: deque[Slice] = deque(maxlen=MAX_SLICES)

    def begin(
        self, session_id: str, track: str, operation: Operation | str
    ) -> Callable[[Outcome], None]:
        """A request has come; call what this returns with its outcome."""
        name = operation if isinstance(operation, str) else type(operation).__name__
        start_ns = self._clock()

        def end(outcome: Outcome) -> None:
            failed = isinstance(outcome, CrucibleError)
            self._slices.append(Slice(session_id, track, name, start_ns, self._clock(), failed))

        return end

    def of(self, session_id: str) -> list[Slice]:
        """The answered requests of a session, by their arrival."""
        found = [s for s in self._slices if s.session_id == session_id]
        return sorted(found, key=lambda s: (s.start_ns, s.end_ns))


def perfetto(title: str, slices: Iterable[Slice]) -> bytes:
    """A trace file of these slices, which are sorted by their start."""
    tracks: dict[str, list[list[Slice]]] = {}
    for s in slices:
        lanes = tracks.setdefault(s.track, [])
        free = next((lane for lane in lanes if lane[-1].end_ns <= s.start_ns), None)
        if free is None:
            lanes.append([s])
        else:
            free.append(s)
    packets = [_descriptor(1, title, None)]
    uuid = 1
    for track, lanes in sorted(tracks.items()):
        for lane in lanes:
            uuid += 1
            packets.append(_descriptor(uuid, track, 1))
            packets += _events(uuid, lane)
    return b"".join(_field(_PACKET, p) for p in packets)


def _descriptor(uuid: int, name: str, parent: int | None) -> bytes:
    body = _field(_DESCRIPTOR_UUID, uuid) + _field(_DESCRIPTOR_NAME, name.encode())
    if parent is not None:
        body += _field(_DESCRIPTOR_PARENT, parent)
    return _field(_TRACK_DESCRIPTOR, body) + _field(_SEQUENCE_ID, 1)


def _events(uuid: int, lane: list[Slice]) -> Iterator[bytes]:
    on_track = _field(_TRACK_UUID, uuid)
    for s in lane:
        kind = b"failed" if s.failed else b"done"
        begin = _field(_TYPE, _BEGIN) + on_track
        begin += _field(_CATEGORIES, kind) + _field(_NAME, s.name.encode())
        for at_ns, event in ((s.start_ns, begin), (s.end_ns, _field(_TYPE, _END) + on_track)):
            body = _field(_TIMESTAMP, at_ns) + _field(_TRACK_EVENT, event)
            yield body + _field(_SEQUENCE_ID, 1)


def _field(number: int, value: int | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
