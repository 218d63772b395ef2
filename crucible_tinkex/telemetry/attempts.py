"""What a newer attempt of a trial does to the events of older ones; all views follow these rules.

A trial that is resumed starts its next attempt from a checkpoint. Its `session_start` event carries
the attempt's number and `extra.resumed_step`, the step of that checkpoint. Steps after it are done
again, so the older rows are no part of the trial's curve. This says which kinds that concerns.
"""

from __future__ import annotations

import json

CURVE_KINDS = (
    "training_step",
    "optimizer_step",
    "evaluation",
    "example",
    "sample",
    "checkpoint_saved",
)
"""Kinds that describe a state of the model. The others tell what happened, which stays true."""


def resumed_step(extra: str) -> int | None:
    """The step that a `session_start` event says its attempt goes on from; None if it does not."""
    value = json.loads(extra).get("resumed_step")
    return value if isinstance(value, int) else None
