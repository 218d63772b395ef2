"""Proof, before the first spend, that the service applies what a sweep varies.

What was proved once is in the journal's metadata, so that a resumed sweep proves only what is new.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.sweep.connection import Connection
from crucible_tinkex.training.attest.contrasts import LOSS, contrasts_of
from crucible_tinkex.training.attest.judging import NOT_APPLIED, Finding
from crucible_tinkex.training.attest.probing import Attestation, attest

log = logging.getLogger(__name__)

ATTESTED = "attested"
"""Key of a sweep's metadata: findings by dotted key, and what they cost."""


async def attested(
    experiment: Experiment, connection: Connection, known: Mapping[str, Any]
) -> dict[str, Any]:
    """`known` and what is found now, for the metadata; equal to `known` where nothing is new.

    Raises `ConfigError` where the service does not apply what varies, `ServiceError` where it
    fails.
    """
    if experiment.service.embedded or not experiment.service.attest:
        return dict(known)
    found = await proved(experiment, connection, known.get("findings", {}))
    for finding in found.findings:
        if finding.verdict == NOT_APPLIED and not finding.varies:
            log.warning("%s is not applied by the service: %s", finding.key, finding.why)
    refuse(found)
    if not found.findings:
        return dict(known)
    record = found.record
    return {**record, "findings": {**known.get("findings", {}), **record["findings"]}}


async def proved(
    experiment: Experiment, connection: Connection, known: Mapping[str, Any] | None = None
) -> Attestation:
    """Findings on all settings that are not `known`. Raises `ServiceError`."""
    new = [c for c in contrasts_of(experiment) if c.key not in (known or {})]
    if known and all(c.key == LOSS for c in new):
        return Attestation()
    return await attest(
        connection.service.connect,
        new,
        connection.data.train,
        base_model=experiment.model.base,
    )


def refuse(found: Attestation) -> None:
    """Raise `ConfigError` that names every axis that the service does not apply."""
    refused = [f for f in found.findings if f.refused]
    if refused:
        raise ConfigError(
            f"the service does not apply what the search varies: {'; '.join(map(_said, refused))}. "
            "Trials would differ in name only. Take it out of search.space, or set "
            "service.attest = false to run all the same"
        )


def _said(finding: Finding) -> str:
    a, b = finding.probed
    return f"{finding.key} (models of two steps with {a} and {b}: {finding.why})"
