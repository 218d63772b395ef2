"""A trial: one configuration with one seed, and everything a session must know to run it.

The identity is a hash of what decides the numbers, so asking for the same trial twice trains once.
What only decides how far it goes, or how often something is measured, saved or sent is no part of
it: a trial may be asked to go further later on. Where the schedule decays, the end decides the
learning rate of every step, and is a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.names import digest

_LENGTH = {"epochs", "max_steps"}
_NO_PART = {"checkpoint_every", "eval_every", "submit_ahead"}


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


def trial_identity(experiment: Experiment, seed: int, fingerprint: str, *, reference: bool) -> str:
    """Twelve hex digits. `fingerprint` stands for the data and for how they were read.

    A reference is never trained: settings of training and its seed are no part of it.
    """
    measured: dict[str, Any] = {
        "model": experiment.model.model_dump(exclude_none=True),
        "evaluation": experiment.evaluation.model_dump(),
        "data": fingerprint,
        "reference": reference,
    }
    if reference:
        return digest({**measured, "max_length": experiment.train.max_length})
    decays = experiment.optimizer.schedule != "constant"
    trained = {
        "lora": experiment.lora.model_dump(mode="json"),
        "optimizer": experiment.optimizer.model_dump(),
        "train": experiment.train.model_dump(exclude=_NO_PART | (set() if decays else _LENGTH)),
        "seed": seed,
    }
    return digest(measured | trained)
