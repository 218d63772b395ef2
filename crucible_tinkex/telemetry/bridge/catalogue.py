"""The seed's catalogue: names of events, and which of them are stored under which kind.

One fact, one event. The original told a step three times over (`training, step` twice and
`forward_backward_stop`), so that whoever counted counted double; here `forward_backward_stop` and
`optim_step_stop` are the step. Calls over HTTP, of which one operation may need several, have names
of their own (`http_request_*`) and are never mixed with operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from crucible_tinkex.errors import ConfigError, did_you_mean
from crucible_tinkex.events import KINDS

OPERATIONS = ("forward_backward", "forward", "optim_step", "sample", "save_weights", "load_weights")
"""Each has `_start`, and then `_stop` or `_exception`."""
_ENDS = ("start", "stop", "exception")
FACTS = (
    "model_registered",
    "model_metrics_updated",
    "model_tagged",
    "model_promoted",
    "model_aliased",
    "model_deleted",
    "checkpoint_pinned",
    "checkpoint_unpinned",
    "checkpoint_pruned",
    "checkpoint_expiry_set",
    "checkpoint_expired",
    "checkpoint_verified",
    "checkpoint_downloaded",
    "artifact_stored",
    "dataset_registered",
    "dataset_loaded",
)
"""Of a storage: to its handlers (`Telemetry.attach`), and kinds of their own in queries. A session
prunes its own checkpoints by the same name, to its own handlers."""
CATALOGUE: tuple[str, ...] = (
    "session_start",
    "session_end",
    *(f"{operation}_{end}" for operation in OPERATIONS for end in _ENDS),
    "checkpoint_saved",
    "checkpoint_loaded",
    "checkpoint_deleted",
    "sampler_created",
    "evaluation_complete",
    "epoch_complete",
    "recovery_started",
    "recovery_completed",
    "recovery_failed",
    "http_request_stop",
    "http_request_exception",
    "queue_state",
    "handler_detached",
    "stage_start",
    "stage_stop",
    "stage_error",
    *FACTS,
)
"""`stage_*` are those of the harness."""

_STORED: Mapping[str, tuple[str, ...]] = {
    "checkpoint": ("checkpoint_saved",),
    "session": ("session_start", "session_end"),
    "forward_backward_stop": ("training_step",),
    "optim_step_stop": ("optimizer_step",),
    "evaluation_complete": ("evaluation",),
    "model": tuple(name for name in FACTS if name.startswith("model_")),
    "artifact": ("artifact_stored", "checkpoint_downloaded"),
    "dataset": ("dataset_registered", "dataset_loaded"),
    "stage_stop": ("stage",),
}
"""The seed's event types, and its events, as the kinds under which they are stored."""


@dataclass(frozen=True)
class BridgeEvent:
    """What a handler gets: numbers that were measured, and what they belong to.

    `measurements` always has `crucible_timestamp` (UTC milliseconds); `duration_s` where something
    took time. `metadata` always has `adapter`, `crucible_version` and `experiment_id`.
    """

    name: str
    measurements: Mapping[str, Any]
    metadata: Mapping[str, Any]


Handler: TypeAlias = Callable[[BridgeEvent], object]


def check_event(name: str) -> str:
    """`name` if it is in the catalogue. Raises `ConfigError` with the nearest name."""
    return _known(name, CATALOGUE, what="event")


def stored_kinds(event_type: str) -> tuple[str, ...]:
    """The kinds that an event type of the seed, or a kind itself, is stored under."""
    if event_type in KINDS or event_type in FACTS:
        return (event_type,)
    return _STORED[_known(event_type, (*_STORED, *KINDS, *FACTS), what="event type")]


def _known(name: str, known: tuple[str, ...], *, what: str) -> str:
    if name in known:
        return name
    hint = did_you_mean(name, known, cutoff=0.5)
    raise ConfigError(f"unknown {what} {name!r}; {hint}known: {', '.join(known)}")
