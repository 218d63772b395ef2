"""Proof, before the first spend, that the service applies what a sweep varies.

What was proved once is in the journal's metadata, so that a resumed sweep proves only what is new.
What a proof took is in the journal also where it ends in a refusal.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.registry import ControlPort, Spent
from crucible_tinkex.registry.upkeep import Upkeep
from crucible_tinkex.sweep.connection import Connection
from crucible_tinkex.sweep.deciding.prices import checked_price
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep
from crucible_tinkex.training.attest.contrasts import MOVES, Contrast, base_of, contrasts_of
from crucible_tinkex.training.attest.judging import NOT_APPLIED, Finding
from crucible_tinkex.training.attest.policies import LOSSES, loss_contrasts
from crucible_tinkex.training.attest.probing import Attestation, attest, cost

log = logging.getLogger(__name__)


class Proofs:
    """What the service of one run was proved to apply; `record` is that for the metadata."""

    def __init__(self, prepared: PreparedSweep, run_id: str) -> None:
        self.record = dict(prepared.existing.attested) if prepared.existing else {}
        self._spent = prepared.proofs
        self._run_id = run_id

    async def add(
        self,
        prepared: PreparedSweep,
        connection: Connection,
        registry: ControlPort | None = None,
    ) -> bool:
        """Have the service prove what is new; whether `record` has got it. `registry`: of a sweep
        that runs; else the journal is written to here.

        Raises `ConfigError` where the service does not apply what varies, or the budget does not
        pay for the proof; `ServiceError` where it fails.
        """
        experiment, known = prepared.experiment, self.record.get("findings", {})
        coming = proof_of(experiment, connection.data.train, known)
        check_affordable(experiment, coming.spent, prepared.spent)
        if not coming.models:
            return False
        found = await proved(experiment, connection, known)
        self._spent = found.spent + self._spent
        for finding in found.findings:
            if finding.verdict == NOT_APPLIED and not finding.varies:
                log.warning("%s is not applied by the service: %s", finding.key, finding.why)
        try:
            refuse(found)
        except ConfigError:
            await self._note(prepared, registry)
            raise
        if found.findings:
            findings = {**known, **found.record["findings"]}
            self.record = {**found.record, "findings": findings, "spent": asdict(self._spent)}
        return bool(found.findings)

    async def _note(self, prepared: PreparedSweep, registry: ControlPort | None) -> None:
        """That it took something, though the metadata will not say so."""
        record = {"type": "proof", "spent": asdict(self._spent)}
        if registry is not None:
            await registry.upkeep([record], f"{self._run_id}:proof:{self._spent.tokens}")
        else:
            with Upkeep(prepared.paths, owned=True) as journal:
                journal.write(record)


def proof_of(
    experiment: Experiment, data: TokenisedDataset, known: Mapping[str, Any] | None = None
) -> Attestation:
    """What a run will use to prove what is not `known`; nothing where it proves nothing."""
    if experiment.service.embedded or not experiment.service.attest:
        return Attestation()
    return cost(_new(experiment, known or {}), data)


def check_affordable(experiment: Experiment, coming: Spent, spent: Spent) -> None:
    """Raise `ConfigError` where a cap of the sweep would be passed before its first step."""
    budget, price = experiment.budget, checked_price(experiment)
    uses: dict[str, tuple[float, float]] = {"tokens": (spent.tokens, coming.tokens)}
    if price is not None:
        uses["dollars"] = (price.of(spent), price.of(coming))
    for key, (used, more) in uses.items():
        cap = getattr(budget, key)
        if more and cap is not None and used + more > cap:
            raise ConfigError(
                f"budget.{key} = {cap:g} does not pay for the proof that the service applies what "
                f"varies: it takes {more:.6g}, and {max(0, cap - used):.6g} are left. Give more, "
                "or set service.attest = false"
            )


def _new(experiment: Experiment, known: Mapping[str, Any]) -> list[Contrast]:
    new = [c for c in contrasts_of(experiment) if c.key == MOVES or c.key not in known]
    return [] if known and len(new) == 1 else new


async def proved(
    experiment: Experiment,
    connection: Connection,
    known: Mapping[str, Any] | None = None,
    losses: Sequence[str] = (),
) -> Attestation:
    """Findings on all settings that are not `known`, and on these losses of the service. Raises
    `ServiceError`."""
    contrasts = _new(experiment, known or {})
    if losses:
        contrasts = [*loss_contrasts(losses, base_of(contrasts)), *contrasts]
    return await attest(
        connection.service.connect,
        contrasts,
        connection.data.train,
        base_model=experiment.model.base,
    )


def refuse(found: Attestation) -> None:
    """Raise `ConfigError` that names every axis, and every loss that was asked about, that the
    service does not apply."""
    refused = [f for f in found.findings if f.refused]
    if not refused:
        return
    said = "; ".join(map(_said, refused))
    if all(f.key.startswith(LOSSES) for f in refused):
        raise ConfigError(f"the service does not apply what its losses promise: {said}")
    raise ConfigError(
        f"the service does not apply what the search varies: {said}. "
        "Trials would differ in name only. Take it out of search.space, or set "
        "service.attest = false to run all the same"
    )


def _said(finding: Finding) -> str:
    a, b = finding.probed
    name = "" if finding.key.endswith(finding.field) else f"{finding.field} "
    return f"{finding.key} (models of two steps with {name}{a} and {b}: {finding.why})"
