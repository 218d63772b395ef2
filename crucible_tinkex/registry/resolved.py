"""`resolved.json`: what a sweep says of itself before its journal does."""

from __future__ import annotations

import json
from typing import Any

from crucible_tinkex.errors import CorruptLogError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.storage import storage_errors


def read_resolved(paths: SweepPaths) -> dict[str, Any]:
    """The metadata as the sweep's preparation wrote it. Raises `CorruptLogError` if it is no longer
    that, `StorageError` where it cannot be read."""
    with storage_errors(paths.resolved):
        text = paths.resolved.read_bytes()
    try:
        found: dict[str, Any] = json.loads(text)
        return {
            **found,
            "experiment": dict(found["experiment"]),
            "fingerprint": found["fingerprint"],
        }
    except (ValueError, TypeError, KeyError) as e:
        raise CorruptLogError(f"{paths.resolved} is damaged: {e!r}; restore it") from e
