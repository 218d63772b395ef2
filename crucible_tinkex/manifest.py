"""What a sweep's folder says about itself: `experiment.toml` as asked, `resolved.json` as run."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from crucible_tinkex.preparation import PreparedSweep
from crucible_tinkex.storage import write_atomic

PACKAGES = ("crucible-tinkex", "ray", "httpx", "pydantic", "pyarrow", "torch", "transformers")


def versions() -> dict[str, str]:
    """Versions of the packages that decide results; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_manifest(prepared: PreparedSweep) -> dict[str, Any]:
    """Write both files if the sweep is new; return the sweep's metadata."""
    meta = {
        "sweep": prepared.name,
        "identity": prepared.identity,
        "fingerprint": prepared.fingerprint,
        "experiment": prepared.experiment.stored(prepared.paths.root),
        "versions": versions(),
        "not_applied": prepared.experiment.not_applied(),
    }
    if not prepared.started:
        if prepared.source is not None:
            write_atomic(prepared.paths.experiment, prepared.source.encode())
        write_atomic(prepared.paths.resolved, json.dumps(meta, indent=2).encode())
    return meta
