"""The sweep's memory: trials, attempts, decisions, checkpoints and results, folded from a journal.

The journal is the truth; `SweepState` is what it folds to; `Registry` is its one writer. Nothing
here knows Ray: an actor, or the driver itself, owns a `Registry`.
"""

from crucible_tinkex.registry.records import (
    ATTESTED,
    CONFIRM,
    DONE,
    FAIL_FAST,
    FAILED,
    INTERRUPTED,
    LOST,
    PAUSED,
    PENDING,
    PERSON,
    RUNNING,
    SEARCH,
    STOPPED,
    TERMINAL,
    AttemptGrant,
    CheckpointRecord,
    Decision,
    Origin,
    Spent,
    TrialRecord,
    Used,
)
from crucible_tinkex.registry.registry import ControlPort, Registry, RegistryPort
from crucible_tinkex.registry.state import SweepState

__all__ = [  # noqa: RUF022  (in groups)
    # states of a trial
    "PENDING",
    "RUNNING",
    "PAUSED",
    "DONE",
    "STOPPED",
    "FAILED",
    "LOST",
    "TERMINAL",
    # state of a sweep, besides pending, running and done
    "INTERRUPTED",
    # phases
    "SEARCH",
    "CONFIRM",
    # ends of a sweep
    "FAIL_FAST",
    # who pauses and stops
    "PERSON",
    # keys of the metadata
    "ATTESTED",
    # records
    "AttemptGrant",
    "CheckpointRecord",
    "Decision",
    "Origin",
    "Spent",
    "TrialRecord",
    "Used",
    # the whole
    "ControlPort",
    "Registry",
    "RegistryPort",
    "SweepState",
]
