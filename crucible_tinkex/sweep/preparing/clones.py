"""What the clones of a sweep learn by, which need not be anything that its search varies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import SweepState
from crucible_tinkex.search.points.space import Values
from crucible_tinkex.sweep.orders.control import Command, Inbox


def cloned(
    state: SweepState | None, paths: SweepPaths, orders: Sequence[Command] = ()
) -> Iterator[Values]:
    """The configurations of trials that were cloned, and of clones that are asked for: by `orders`,
    or in the sweep's folder. What cannot be cloned is refused when the order is obeyed."""
    if state is None:
        return
    yield from (trial.values for trial in state.trials.values() if trial.origin is not None)
    for order in (*orders, *Inbox(paths).waiting()):
        if order.kind == "clone" and order.op not in state.ops:
            with contextlib.suppress(ConfigError):
                for parent in state.named(order.trials):
                    yield {**parent.values, **order.settings}
