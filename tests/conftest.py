"""Makes this folder's modules importable from all tests; the longest files begin first."""

from __future__ import annotations

import signal
from pathlib import Path

import hypothesis
import pytest
import pytest_timeout

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


TICK_S = 20.0


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool | None:
    """A test's time is counted in ticks: a machine that was paused or starved for an hour costs it
    one of them, where a single timer had run out (a test of a second failed so)."""
    if settings.method != "signal":
        return None
    left = max(1, round(settings.timeout / TICK_S))

    def tick(*_: object) -> None:
        __tracebackhide__ = True
        nonlocal left
        left -= 1
        if not left:
            signal.setitimer(signal.ITIMER_REAL, 0)
            pytest_timeout.timeout_sigalrm(item, settings)

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel  # type: ignore[attr-defined]
    signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)
    return True
