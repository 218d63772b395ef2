"""Commands to a sweep from other processes: files in its `control/` folder.

A command is a file that is written whole or not at all, and stays until the journal has its answer,
under the command's own id: however often it is read, it is obeyed once. The driver looks into the
folder twice a second. What asks for more work may be left there for the next run; what speaks of
running trials is worth nothing without one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import Decision, SweepState
from crucible_tinkex.registry.journal import JournalReader
from crucible_tinkex.registry.records import known
from crucible_tinkex.storage import is_locked, storage_errors, write_atomic

Kind: TypeAlias = Literal["stop", "pause", "unpause", "clone", "extend", "retry"]
KINDS: tuple[str, ...] = get_args(Kind)
LASTING = ("clone", "extend", "retry")
"""These make sense also where nothing runs."""
CODE = "code"
"""What an amendment calls functions of the user's that the sweep did not know."""
POLL_S = 0.1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """What a person asks of a sweep."""

    kind: Kind
    trials: tuple[str, ...] = ()
    """Ids, names or numbers; none: the whole sweep."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """clone, extend: dotted keys."""
    fresh: bool = False
    at: int | None = None
    """clone: the newest checkpoint at or before this step."""
    command_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def op(self) -> str:
        """Its name in the journal."""
        return f"control:{self.command_id}"

    def answered(self, text: str) -> Decision:
        """The record of what became of it."""
        command = {**asdict(self), "trials": list(self.trials), "settings": dict(self.settings)}
        return Decision("command", reason=text, command=command)


class Inbox:
    """The control folder of a sweep."""

    def __init__(self, paths: SweepPaths) -> None:
        self._folder = paths.control

    def waiting(self) -> list[Command]:
        """The oldest first. What cannot be read is set aside, with a warning."""
        if not self._folder.is_dir():
            return []
        with storage_errors(self._folder):
            files = sorted(self._folder.glob("*.json"))
        return [command for file in files if (command := self._read(file))]

    def _read(self, file: Path) -> Command | None:
        try:
            found = json.loads(file.read_bytes())
            command = known(Command, {**found, "trials": tuple(found["trials"])})
            if command.kind not in KINDS:
                raise ValueError(f"there is no command {command.kind!r}")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as e:
            log.warning("%s is no command and is set aside: %s", file, e)
            with contextlib.suppress(OSError):
                file.rename(file.with_suffix(".refused"))
            return None
        return command

    def put(self, command: Command) -> None:
        """Leave a command there. Raises `StorageError`."""
        text = json.dumps(asdict(command))
        write_atomic(self._file(command), text.encode())

    def drop(self, command: Command) -> None:
        """It was answered, or taken back."""
        for file in self._folder.glob(f"*-{command.command_id}.json"):
            file.unlink(missing_ok=True)

    def _file(self, command: Command) -> Path:
        return self._folder / f"{time.time_ns():020d}-{command.command_id}.json"


def send(paths: SweepPaths, command: Command, *, wait_s: float = 10.0) -> str:
    """Have a running sweep obey; its answer. Raises `ConfigError` for a refusal, and where the
    sweep ends first: then nothing has changed."""
    inbox = Inbox(paths)
    if not is_locked(paths.lock):
        raise _ended(paths, command)
    inbox.put(command)
    deadline = time.monotonic() + wait_s
    journal, state = JournalReader(paths.journal), SweepState()
    while time.monotonic() < deadline:
        running = is_locked(paths.lock)
        records, is_all = journal.read()
        state = (SweepState() if is_all else state).fold(records)
        answer = state.commands.get(command.command_id)
        if answer is not None and answer.startswith(REFUSED):
            raise ConfigError(answer.removeprefix(REFUSED))
        if answer is not None:
            return answer
        if not running:
            inbox.drop(command)
            raise _ended(paths, command)
        time.sleep(POLL_S)
    return "sent; the sweep has not answered yet"


REFUSED = "refused: "


def _ended(paths: SweepPaths, command: Command) -> ConfigError:
    return ConfigError(
        f"sweep {paths.root.name!r} is not running: there is nothing to {command.kind}; "
        "nothing was changed"
    )
