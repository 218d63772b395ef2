"""The files of one trial's run: the scalars of each attempt, how it ended, the definitions.

A file per attempt, named by it, so that TensorBoard reads the attempts in order and a process that
replaced another goes on with the same file. Guarantees: no open file between calls; what a method
wrote is in the operating system's hands when it returns. No fsync: what a power cut takes is missed
when the view is opened again, and made anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crucible_tinkex.telemetry.tensorboard.records import (
    Content,
    Key,
    frames,
    has,
    header,
    key_of,
    read_content,
)

_PREFIX = "events.out.tfevents."
_SCALARS, _END = ".crucible", ".crucible.end"
DEFINITIONS = f"{_PREFIX}{0:010d}.definitions"


class RunFiles:
    """Writes and corrects the files in `folder`. All methods raise `OSError`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._contents: dict[int, Content] | None = None
        self._pending: dict[int, list[Any]] = {}

    def file(self, attempt: int) -> Path:
        return self.folder / f"{_PREFIX}{attempt:010d}{_SCALARS}"

    def attempts(self) -> list[int]:
        """Which attempts have a file, oldest first."""
        files = self.folder.glob(f"{_PREFIX}*{_SCALARS}")
        return sorted(int(path.name[len(_PREFIX) :].split(".")[0]) for path in files)

    def size(self) -> int:
        """Bytes of all attempts' files."""
        return sum(self.file(attempt).stat().st_size for attempt in self.attempts())

    def put(self, attempt: int, *records: Any) -> None:
        """Take records for the attempt's file; `write` writes them."""
        self._pending.setdefault(attempt, []).extend(records)
        if self._contents is not None:
            content = self._contents.setdefault(attempt, Content())
            for record in records:
                content.add(record)

    def write(self) -> None:
        """Append all that was put, or fail; a file that is new begins with a header."""
        pending, self._pending = self._pending, {}
        for attempt, records in pending.items():
            path = self.file(attempt)
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(path, "ab", buffering=0) as f:
                new = f.tell() == 0
                data = frames([header(records[0].wall_time), *records] if new else records)
                if f.write(data) != len(data):
                    raise OSError(f"{path} took only a part of {len(data)} bytes")

    def load(self) -> dict[int, Content]:
        """What the files and the records put hold, kept until `unload`; torn ends are cut off."""
        if self._contents is None:
            self.write()
            self._contents = {attempt: self._read(attempt) for attempt in self.attempts()}
        return self._contents

    def unload(self) -> None:
        """Forget what is not written, and what `load` kept."""
        self._contents = None
        self._pending = {}

    def _read(self, attempt: int) -> Content:
        content = read_content(self.file(attempt))
        if content.size < self.file(attempt).stat().st_size:
            os.truncate(self.file(attempt), content.size)
        return content

    def has(self, attempt: int, record: Any) -> bool:
        """Whether this very scalar is in the attempt's file."""
        return attempt in self.load() and has(self.load()[attempt], record)

    def is_new(self, attempt: int) -> bool:
        """Whether the attempt has neither a file nor records for one."""
        return attempt not in self._pending and not self.file(attempt).exists()

    def is_announced(self, attempt: int) -> bool:
        has_file = self._contents is not None or self.file(attempt).exists()
        return has_file and attempt in self.load() and self.load()[attempt].announced

    def newer_has(self, attempt: int, key: Key) -> bool:
        return any(key in content.values for a, content in self.load().items() if a > attempt)

    def drop(self, before: int, unwanted: Callable[[Key], bool]) -> None:
        """Take scalars out of the files of the attempts older than `before`."""
        for attempt, content in list(self.load().items()):
            if attempt < before and any(map(unwanted, content.values)):
                self.write()
                kept = Content()
                kept.add(header(content.records[0].wall_time))
                for record in content.records:
                    key = key_of(record)
                    if not record.file_version and (key is None or not unwanted(key)):
                        kept.add(record)
                self._replace(self.file(attempt), frames(kept.records))
                self.load()[attempt] = kept

    def set_end(self, attempt: int, *records: Any) -> None:
        """How the trial ended, in a file of its own: TensorBoard keeps the first status it meets,
        so when the trial is taken up again the old one must go."""
        self.reopen()
        path = self.folder / f"{_PREFIX}{attempt:010d}{_END}"
        self._replace(path, frames([header(records[0].wall_time), *records]))

    def reopen(self) -> None:
        for path in self.folder.glob(f"*{_END}"):
            path.unlink(missing_ok=True)

    def set_definitions(self, records: Sequence[Any]) -> None:
        self._replace(self.folder / DEFINITIONS, frames(records))

    def clear(self) -> None:
        self.unload()
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _replace(self, path: Path, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / ".replacing.tmp"
        temporary.write_bytes(data)
        os.replace(temporary, path)
