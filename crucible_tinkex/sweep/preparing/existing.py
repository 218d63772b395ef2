"""What a sweep's folder holds already: what it was asked for, with which data, code and service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crucible_tinkex.config import EMBEDDED, Experiment
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import ATTESTED, DONE, SweepState
from crucible_tinkex.sweep.preparing.training_sets import Training

COUNTS = "row_counts"


@dataclass(frozen=True)
class Existing:
    """What a sweep was asked for until now: as its journal has it, or its folder before there is a
    journal."""

    experiment: Experiment
    fingerprint: str
    """Of the data as declared."""
    service: str
    sweep_id: str | None
    """None: version 0.1.0 made it, which had none."""
    attested: Mapping[str, Any] = field(default_factory=dict)
    """What the service was proved to apply (`attesting`)."""
    code: Mapping[str, str] = field(default_factory=dict)
    """The user's functions, with the hashes of their source."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Of the training data among which the search chooses, by name."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Rows that an epoch shows, by the fingerprint of the training data; none before a run has
    tokenised them."""

    is_trained: bool = False
    """Something was learnt, by the code as it is known."""
    is_measured: bool = False
    """There are results."""
    is_stepped: bool = False
    """A trial has ended with what its `[steps]` found."""
    is_complete: bool = False
    """Nothing is left to do, unless more is asked for."""

    @classmethod
    def of(cls, state: SweepState, paths: SweepPaths) -> Existing:
        found = state.meta
        experiment = Experiment.loaded(found["experiment"], folder=paths.root)
        service = found.get("service", EMBEDDED)
        return cls(
            experiment,
            found["fingerprint"],
            service,
            found.get("sweep_id"),
            attested=found.get(ATTESTED, {}),
            code=found.get("code", {}),
            fingerprints=found.get("fingerprints", {}),
            counts=found.get(COUNTS, {}),
            is_trained=state.saved > 0,
            is_measured=bool(state.measured),
            is_stepped=any(t.state == DONE and not t.reference for t in state.trials.values()),
            is_complete=state.complete,
        )

    def is_told_by(self, function: str, experiment: Experiment) -> bool:
        """Whether numbers are there that come from this function of the user's, as it was until
        now. What a step found in a trial that has failed since is found again when that is tried
        again."""
        if function in {table.function for table in experiment.evaluation.scores}:
            return self.is_measured
        if function in experiment.steps.functions:
            return self.is_stepped
        return self.is_measured or self.is_trained

    def counted(self, training: Training, experiment: Experiment) -> Training:
        """With the rows that were left of each when a run last tokenised it."""
        if experiment.train.max_length != self.experiment.train.max_length:
            return training
        return {
            files: replace(found, epoch_rows=self.counts.get(found.fingerprint, found.epoch_rows))
            for files, found in training.items()
        }
