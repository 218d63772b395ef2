"""Makes this folder's modules importable from all tests; the longest files begin first."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

# How long an example takes depends on the machine's other work; what hangs is ended by `timeout`.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

HERE = Path(__file__).parent
LONGEST_FIRST = (
    "run/test_faults.py",
    "runtime/test_nodes.py",
    "server/test_server_cookbook.py",
    "run/test_jobs.py",
    "server/test_server_engine_campaign.py",
    "run/test_starting.py",
    "run/test_waits.py",
    "run",
    "weights",
    "cli",
    "tuning",
    "runtime",
    "server",
    "client",
)
"""By measured time. A file runs in one process (its fixtures are shared): one that takes minutes
and comes last leaves the other processes idle meanwhile."""


def _place(item: pytest.Item) -> int:
    path = item.path.relative_to(HERE)
    for place, name in enumerate(LONGEST_FIRST):
        if path.is_relative_to(name):
            return place
    return len(LONGEST_FIRST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_place)
