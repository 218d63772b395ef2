"""Any sequence of appends, faults, deaths and power cuts: what was acknowledged is read back."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

from faulty_files import FaultyFiles
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_tinkex.errors import StorageError
from crucible_tinkex.storage import SegmentLog, read_log, segments

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 3)),
        st.tuples(st.just("full disk"), st.integers(0, 60)),
        st.tuples(st.just("full disk and no way back"), st.integers(0, 60)),
        st.tuples(st.just("failed fsync"), st.integers(0, 1)),
        st.tuples(st.just("reopen"), st.none()),
    ),
    max_size=20,
)


class Machine:
    """A log on a disk with faults, and what its caller may rely on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = FaultyFiles()
        self.acknowledged: list[bytes] = []
        self.sent = 0
        self.log = self.open()

    def open(self) -> SegmentLog:
        return SegmentLog(self.folder, mark=True, fenced=True, files=self.disk)

    def do(self, what: str, number: int | None) -> None:
        if what == "reopen":
            self.log.close()
            self.log = self.open()
        elif what == "append":
            self.append(number or 1)
        else:
            if "disk" in what:
                self.disk.room = number
            if "no way back" in what or number:
                self.disk.ftruncate_errors = [errno.EIO]
            if "fsync" in what:
                self.disk.fsync_errors = [errno.EIO]
            self.append(2)
            self.disk.room, self.disk.ftruncate_errors, self.disk.fsync_errors = None, [], []

    def append(self, count: int) -> None:
        batch = [b"record %d" % (self.sent + i) for i in range(count)]
        self.sent += count
        try:
            self.log.append(batch)
        except StorageError:
            return
        self.acknowledged += batch

    def cut_power(self, data: st.DataObject) -> None:
        """Keep what fsync promised, some of the rest, and any version of the mark."""
        self.log.close()
        for path in segments(self.folder):
            safe = len(self.disk.durable.get(path, b""))
            size = path.stat().st_size
            path.write_bytes(path.read_bytes()[: data.draw(st.integers(min(safe, size), size))])
        mark = self.folder / "length"
        mark.write_bytes(data.draw(st.sampled_from(self.disk.versions.get(mark, [b""]))))


def check(machine: Machine) -> None:
    found = list(read_log(machine.folder))
    assert len(set(found)) == len(found)
    assert found == sorted(found, key=lambda r: int(r.split()[1]))
    assert [r for r in found if r in machine.acknowledged] == machine.acknowledged


@settings(max_examples=60)
@given(STEPS, st.data())
def test_what_was_acknowledged_survives(
    steps: list[tuple[str, int | None]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as place:
        machine = Machine(Path(place).resolve())
        for step in steps:
            machine.do(*step)
            check(machine)
        machine.cut_power(data)
        check(machine)
        machine.log = machine.open()
        machine.append(1)
        machine.log.close()
        check(machine)
