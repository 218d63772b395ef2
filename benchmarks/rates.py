"""How often something happened in many simulations, and what that says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

from scipy import special

PROCESSES = os.cpu_count() or 1
T = TypeVar("T")


def in_processes(processes: int, simulate: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
    """`map`; what is simulated must not depend on where."""
    if processes < 2:
        return list(map(simulate, *arguments))
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return list(pool.map(simulate, *arguments, chunksize=50))


@dataclass(frozen=True)
class Rate:
    """`count` times `of`."""

    count: int
    of: int

    @property
    def share(self) -> float:
        return self.count / self.of

    @property
    def upper(self) -> float:
        """95 % upper bound (Clopper and Pearson 1934)."""
        return float(special.betaincinv(self.count + 1, max(self.of - self.count, 1e-9), 0.95))

    @property
    def lower(self) -> float:
        """95 % lower bound."""
        return float(special.betaincinv(max(self.count, 1e-9), self.of - self.count + 1, 0.05))

    @property
    def rest(self) -> Rate:
        """How often it did not."""
        return Rate(self.of - self.count, self.of)

    def __str__(self) -> str:
        return f"{100 * self.share:.2f} % (below {100 * self.upper:.2f} %)"
