"""What a sweep's folder says about itself: `experiment.toml` as asked, `resolved.json` as run."""

from __future__ import annotations

import json
import platform
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from crucible_tinkex.config.toml import to_toml
from crucible_tinkex.storage import write_atomic
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep
from crucible_tinkex.sweep.results.batches import ASKED
from crucible_tinkex.version import VERSION

PACKAGES = ("ray", "httpx", "pydantic", "pyarrow", "optuna", "cmaes", "torch", "transformers")


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
    meta: dict[str, Any] = {
        "sweep": prepared.name,
        "sweep_id": (existing and existing.sweep_id) or f"{prepared.name}-{uuid.uuid4().hex[:8]}",
        "fingerprint": prepared.fingerprint,
        **_fingerprints(prepared),
        "service": prepared.service,
        "experiment": prepared.experiment.stored(prepared.paths.root),
        ASKED: prepared.asked,
        "versions": versions(),
        "code": {**(existing.code if existing else {}), **prepared.objectives.code},
        "not_applied": prepared.experiment.not_applied(),
    }
    if existing is None or prepared.amendments:
        text = experiment_text(prepared, meta["experiment"])
        write_atomic(prepared.paths.experiment, text.encode())
        write_atomic(prepared.paths.resolved, json.dumps(meta, indent=2).encode())
    return meta


def _fingerprints(prepared: PreparedSweep) -> dict[str, dict[str, str]]:
    """Of the training data among which the search chooses; nothing where it does not."""
    former = prepared.existing.fingerprints if prepared.existing else {}
    found = {**former, **prepared.fingerprints}
    return {"fingerprints": found} if found else {}


def experiment_text(prepared: PreparedSweep, stored: Mapping[str, Any]) -> str:
    """A file that asks for the same, with what `--set`, `--name` and `--storage` changed; run
    from the sweep's folder it goes on with the sweep. The text it came from follows as comments."""
    given = prepared.experiment.model_dump(mode="json", exclude_unset=True)
    asked = _as_stored(given, stored)
    asked = {**asked, "name": prepared.name, "run": {**asked.get("run", {}), "storage": ".."}}
    text = f"# What sweep {prepared.name} was asked for.\n{to_toml(asked)}"
    if prepared.source is None:
        return text
    lines = (f"# {line}".rstrip() for line in prepared.source.strip().splitlines())
    return "\n".join([text, "# The file that was run, before --set and --name:", *lines, ""])


def _as_stored(given: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `given` with the values of `stored`, whose paths start from the folder."""
    return {
        key: _as_stored(value, stored[key])
        if isinstance(value, dict) and key != "space"
        else stored[key]
        for key, value in given.items()
        if key in stored
    }
