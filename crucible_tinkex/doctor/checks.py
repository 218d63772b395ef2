"""Which checks there are, in the order in which they are looked at: the cheap ones first."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from crucible_tinkex.config import EMBEDDED, Experiment, ServiceSection
from crucible_tinkex.doctor import machine, services, sweeps
from crucible_tinkex.doctor.finding import Check
from crucible_tinkex.names import SweepPaths


def checks(
    experiment: Experiment | None, *, storage: Path, address: str | None, deep: bool
) -> Iterator[Check]:
    """Of what `experiment` needs; without one, of both kinds of service."""
    yield Check("software", machine.software)
    yield Check("machine", machine.room)
    yield Check("storage", partial(sweeps.storage, storage))
    for paths in SweepPaths.below(storage):
        yield Check(f"sweep {paths.root.name}", partial(sweeps.sweep, paths, deep=deep))
    section = experiment.service if experiment else None
    base = experiment.model.base if experiment else None
    if section is None or section.embedded:
        embedded = section or ServiceSection(base_url=EMBEDDED)
        yield Check("embedded server", partial(services.embedded, embedded, base or "nano"))
    if section is None or not section.embedded:
        elsewhere = section or ServiceSection()
        yield Check("service", partial(services.elsewhere, elsewhere, base))
    if experiment is None or experiment.run.executor == "ray":
        yield Check("ray", partial(services.cluster, address))
