from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from event_trials import Trial

from crucible_tinkex.telemetry.log import EventLog


@pytest.fixture
def trial() -> Trial:
    return Trial()


@pytest.fixture
def events_folder(tmp_path: Path) -> Path:
    return tmp_path / "events"


@pytest.fixture
def event_log(events_folder: Path) -> Iterator[EventLog]:
    """A log that only the end of the test rolls."""
    with EventLog(events_folder) as log:
        yield log
