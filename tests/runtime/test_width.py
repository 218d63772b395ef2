"""How many sessions train at a time, against services that have room for so many and no more."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from crucible_tinkex.runtime.ports import Packing
from crucible_tinkex.runtime.width import REST_S, WINDOW_S, Seen, Width

BEAT_S = 5.0


class Service:
    """Trains `rate(width)` tokens a second; complains while more than `bears` train."""

    def __init__(self, width: Width, rate: Callable[[int], float], bears: int = 10_000) -> None:
        self.width = width
        self.rate = rate
        self.bears = bears
        self.work = 10_000
        self.time_s, self.tokens, self.complaints = 0.0, 0.0, 0
        self.history: list[int] = []

    def run(self, seconds: float) -> list[int]:
        """The width after each beat."""
        self.history = []
        for _ in range(int(seconds / BEAT_S)):
            training = min(self.width.now, self.work)
            self.time_s += BEAT_S
            self.tokens += BEAT_S * self.rate(training)
            self.complaints += training > self.bears
            full = training >= self.width.now
            self.width.look(Seen(self.time_s, int(self.tokens), self.complaints, full))
            self.history.append(self.width.now)
        return self.history


def linear(width: int) -> float:
    return 100.0 * width


def saturating(at: int) -> Callable[[int], float]:
    return lambda width: 100.0 * min(width, at)


def test_a_number_is_where_it_starts_and_stays_while_nobody_complains() -> None:
    assert set(Service(Width(8), linear).run(3600)) == {8}


def test_it_goes_down_with_the_service_and_up_again() -> None:
    service = Service(Width(16), linear, bears=5)
    history = service.run(60)
    assert history[:3] == [16, 8, 8]
    assert service.width.now <= 5, "halved until the service bears it"
    service.bears = 100
    assert service.run(600)[-1] == 16, "and back when it bears all again"


def test_at_its_limit_it_swings_below_it() -> None:
    service = Service(Width(32), linear, bears=10)
    service.run(600)
    history = service.run(3600)
    assert max(history) <= 14 and min(history) >= 5
    assert sum(w > 10 for w in history) < len(history) / 5, "few windows are complained about"


def test_one_back_off_of_many_sessions_halves_once() -> None:
    width = Width(8)
    for second in range(12):
        width.look(Seen(float(second), 0, second, True))
    assert width.now == 4


def test_never_less_than_one() -> None:
    service = Service(Width(8), linear, bears=0)
    assert service.run(3600)[-1] == 1


@pytest.mark.parametrize("at", [1, 3, 8, 24, 64])
def test_auto_finds_what_is_worth_it(at: int) -> None:
    service = Service(Width(64, probes=True), saturating(at))
    assert service.run(BEAT_S) == [2]
    service.run(40 * WINDOW_S)
    found = service.width.now
    assert 0.75 * at <= found <= max(2, 1.7 * at), "not much more than there is use for"
    assert service.rate(found) >= 0.75 * service.rate(64)


def test_auto_tries_again_when_the_service_has_grown() -> None:
    service = Service(Width(64, probes=True), saturating(4))
    service.run(REST_S)
    small = service.width.now
    service.rate = linear
    service.run(12 * REST_S)
    assert service.width.now > small


def test_auto_stays_where_it_is_while_the_work_is_the_limit() -> None:
    service = Service(Width(64, probes=True), linear)
    service.work = 3
    assert service.run(3600)[-1] == 4, "three trials cannot show that a fifth would be worth it"


def test_auto_judges_nothing_while_nothing_is_trained() -> None:
    service = Service(Width(64, probes=True), lambda width: 0.0)
    assert set(service.run(3600)) == {2}


def test_auto_keeps_few_processes_warm() -> None:
    assert [Packing(64, n, probes=True).actors for n in (1, 2, 64)] == [2, 1, 1]
    assert [Packing(64, n).actors for n in (1, 3, 64)] == [64, 22, 1]
