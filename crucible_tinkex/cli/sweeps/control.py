"""`crucible stop`, `pause`, `unpause`, `clone`, `extend`, and `retry` of a sweep that runs."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from typing import Any

from crucible_tinkex.config import parse_assignment, parse_budget
from crucible_tinkex.storage import is_locked
from crucible_tinkex.sweep.orders.control import Command, Kind
from crucible_tinkex.sweep.orders.steering import steer
from crucible_tinkex.sweep.results.views.summary import existing_sweep


def command_sweep(
    sweep: str,
    kind: Kind,
    trials: Sequence[str] = (),
    *,
    storage: str,
    json: bool,
    assignments: Sequence[str] = (),
    budget: Sequence[str] = (),
    **options: Any,
) -> None:
    """Print the answer. `options`: further fields of `Command`."""
    settings = dict(parse_assignment(a) for a in assignments)
    for text in budget:
        settings |= parse_budget(text)
    command = Command(kind, tuple(trials), settings, **options)
    answer = steer(existing_sweep(storage, sweep), command)
    print(json_module.dumps({"sweep": sweep, "answer": answer}) if json else answer)


def is_running(sweep: str, *, storage: str) -> bool:
    return is_locked(existing_sweep(storage, sweep).lock)
