"""What a sweep's folder says about itself: `experiment.toml` as asked, `resolved.json` as run."""

from __future__ import annotations

import json
import platform
import uuid
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from crucible_tinkex.storage import write_atomic
from crucible_tinkex.sweep.preparation import PreparedSweep
from crucible_tinkex.version import VERSION

PACKAGES = ("ray", "httpx", "pydantic", "pyarrow", "torch", "transformers")


def versions() -> dict[str, str]:
    """Versions of the packages that decide results; those not installed are left out."""
    found = {"python": platform.python_version(), "crucible-tinkex": VERSION}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_manifest(prepared: PreparedSweep) -> dict[str, Any]:
    """Write both files if the sweep is new or asks for something else; return its metadata."""
    existing = prepared.existing
    meta = {
        "sweep": prepared.name,
        "sweep_id": (existing and existing.sweep_id) or f"{prepared.name}-{uuid.uuid4().hex[:8]}",
        "fingerprint": prepared.fingerprint,
        "service": prepared.service,
        "experiment": prepared.experiment.stored(prepared.paths.root),
        "versions": versions(),
        "not_applied": prepared.experiment.not_applied(),
    }
    if existing is None or prepared.amendments:
        if prepared.source is not None:
            write_atomic(prepared.paths.experiment, prepared.source.encode())
        write_atomic(prepared.paths.resolved, json.dumps(meta, indent=2).encode())
    return meta
