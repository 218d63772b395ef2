"""A trial: one configuration with one seed, and everything a session must know to run it.

The identity is a hash of what decides the numbers, so asking for the same trial twice trains once.
What only decides how far it goes, or how often something is measured, saved or sent is no part of
it: a trial may be asked to go further later on. Where the schedule decays, the end decides the
learning rate of every step, and is a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.names import digest
from crucible_tinkex.registry import SEARCH, Origin


@dataclass(frozen=True)
class TrialPlan:
    """What crosses to a session: no secret, nothing that changes. Picklable."""

    trial_id: str
    index: int
    run_name: str
    values: Mapping[str, Any]
    seed: int
    total_steps: int
    experiment: Experiment
    """The experiment with `values` applied."""
    reference: bool = False
    """The untrained base model, evaluated to compare with."""
    phase: str = SEARCH
    origin: Origin | None = None
    """Of a clone; a warm one begins at `origin.step`, in the data order of its own seed."""
    per_million: tuple[float, float, float] | None = None
    """Dollars for tokens of training, prefill and samples, where the price is known."""
    code: Mapping[str, str] = field(default_factory=dict)
    """The user's functions that it learns by, with the hashes of their source."""


def trial_identity(
    experiment: Experiment,
    seed: int,
    fingerprint: str,
    *,
    total_steps: int,
    reference: bool = False,
    origin: Origin | None = None,
    code: Mapping[str, str] | None = None,
) -> str:
    """Twelve hex digits. `fingerprint` stands for the data and for how they were read. A warm
    clone's parent decides its numbers; that of a fresh one does not. `code`: as in the plan."""
    settings = experiment.trial_settings(total_steps=total_steps, reference=reference)
    service = {"base_url": experiment.service.base_url, "dtype": experiment.service.dtype}
    content: dict[str, Any] = {"settings": settings, "service": service, "data": fingerprint}
    if code and not reference:
        content["code"] = dict(code)
    if origin and origin.warm:
        content["parent"] = [origin.parent, origin.step]
    return digest(content if reference else {**content, "seed": seed})
