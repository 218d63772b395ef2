"""`crucible plan`: what would run, checked against data and service. Trains nothing but the short
models of `--probe`."""

from __future__ import annotations

import asyncio
import json as json_module
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crucible_tinkex.cli.sweeps.reading import read_experiment
from crucible_tinkex.cli.terminal.attested import described, print_attested
from crucible_tinkex.cli.terminal.estimates import estimate_lines
from crucible_tinkex.cli.terminal.examples import print_examples, print_lengths
from crucible_tinkex.datasets import (
    LengthStatistics,
    TokenisedDataset,
    load_tokenizer,
    shown,
    typical,
)
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import Spent
from crucible_tinkex.sweep.attesting import check_affordable, proof_of, proved, refuse
from crucible_tinkex.sweep.connection import connected
from crucible_tinkex.sweep.deciding.proposing.asking import trials_of
from crucible_tinkex.sweep.preparing.estimate import Estimate, Rows, estimate, row_tokens
from crucible_tinkex.sweep.preparing.experience import paces
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep, prepare
from crucible_tinkex.training.attest.probing import Attestation
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.training.plan import TrialPlan

SHOWN_CONFIGURATIONS = 20
"""On a terminal, so that what comes after them can be seen."""


def plan_file(
    file: Path,
    assignments: Sequence[str],
    *,
    name: str | None,
    storage: str | None,
    json: bool,
    probe: bool = False,
    losses: Sequence[str] = (),
) -> None:
    """`probe`: also prove what the service applies, and that `losses` of its own are what they are
    called. Raises `ConfigError` once all is shown, if it does not."""
    experiment, source = read_experiment(file, assignments)
    prepared = prepare(experiment, storage=storage, name=name, source=source)
    data, proof = asyncio.run(_asked(prepared, probe=probe, losses=losses))
    found = describe(prepared.measured(data), data, proof)
    if proof:
        found |= {"attested": described(proof, prepared.price)}
    if json:
        print(json_module.dumps(found))
    else:
        show(found)
        if proof:
            print_attested(found["attested"])
    if proof:
        refuse(proof)


def show(found: Mapping[str, Any]) -> None:
    """What `describe` found, for people; warnings to stderr."""
    for key, value in found.items():
        if key != "chosen_later" and isinstance(value, str | int):
            print(f"{key.replace('_', ' '):<16}{value}")
    for name, rows in found.get("train_sets", {}).items():
        print(f"{'':<16}{rows} rows of data.train = {name}")
    for line in estimate_lines(found["estimate"]):
        print(line)
    print_lengths(found["row_tokens"])
    known = found["configurations"]
    for values in known[:SHOWN_CONFIGURATIONS]:
        print("  " + (", ".join(f"{k} = {v}" for k, v in values.items()) or "as declared"))
    if hidden := len(known) - len(known[:SHOWN_CONFIGURATIONS]):
        print(f"  and {hidden} more (--json has all)")
    if later := found["chosen_later"]:
        print(f"  and {later} more, chosen as results come in")
    for note in found["auto"]:
        print(f"auto: {note}")
    print_examples(found["examples"])
    for warning in found["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)


async def _asked(
    prepared: PreparedSweep, *, probe: bool, losses: Sequence[str]
) -> tuple[SweepData, Attestation | None]:
    """Ask the service for its model and tokenise, leaving the sweep's folder alone; have it prove
    what it applies, if that is wanted."""
    with tempfile.TemporaryDirectory() as scratch:
        elsewhere = SweepPaths(Path(scratch))
        async with connected(prepared, data_dir=elsewhere.service) as connection:
            data: SweepData = connection.data
            _coming_proof(prepared, data)
            if not probe:
                return data, None
            return data, await proved(prepared.experiment, connection, losses=losses)


def describe(
    prepared: PreparedSweep, data: SweepData, probe: Attestation | None = None
) -> dict[str, Any]:
    """Trials, steps and tokens of the sweep, if every trial is trained to its end; those that are
    chosen later are taken to be as long as those that are known. `probe`: it tells the time, where
    no sweep does."""
    experiment, planner = prepared.experiment, prepared.planner
    seeds = experiment.search.seeds
    plans = [planner.plan(values, seeds[0]) for values in prepared.configurations]
    batch_size = experiment.train.batch_size
    sets = {name: data.of(found).train for name, found in prepared.data_of.items()}
    planned = prepared.policy().planned
    trials = planned - planner.has_reference
    each = trials / len(plans)
    batch_rows = sum(p.total_steps * p.experiment.train.step_rows for p in plans)
    return {
        "sweep": prepared.name,
        "folder": str(prepared.paths.root),
        "state": _state(prepared),
        "base_model": experiment.model.base,
        "train_rows": len(data.train),
        **({"train_sets": {name: len(rows) for name, rows in sets.items()}} if sets else {}),
        "eval_rows": len(data.eval) if data.eval else 0,
        "trials": planned,
        "steps": round(each * sum(p.total_steps for p in plans)),
        "train_tokens": round(each * batch_rows * row_tokens(data, plans)),
        "estimate": _estimate(prepared, plans, data, probe).summary(),
        "row_tokens": asdict(LengthStatistics.of(data.train, batch_size=batch_size)),
        "examples": _examples(data, sets),
        "configurations": [dict(values) for values in prepared.configurations],
        "chosen_later": _searched(prepared) // len(seeds) - len(plans),
        "auto": list(prepared.notes),
        "warnings": prepared.warnings(),
    }


def _estimate(
    prepared: PreparedSweep,
    plans: Sequence[TrialPlan],
    data: SweepData,
    probe: Attestation | None,
) -> Estimate:
    return estimate(
        prepared.experiment,
        plans,
        trials=_searched(prepared),
        rows=Rows.of(data, prepared.experiment.evaluation, plans),
        paces=paces(prepared.paths.root.parent, prepared.experiment.model.base),
        proof=_coming_proof(prepared, data),
        probe=probe,
    )


def _searched(prepared: PreparedSweep) -> int:
    """Trials of the search, at most: without the untrained base and the fresh seeds of leaders."""
    asker = trials_of(prepared.planner, prepared.configurations)
    return asker.planned - prepared.planner.has_reference


def _coming_proof(prepared: PreparedSweep, data: SweepData) -> Spent:
    """What a run will spend to prove its service. Raises `ConfigError` where a cap is below it."""
    existing = prepared.existing
    known = existing.attested.get("findings", {}) if existing else {}
    proof = proof_of(prepared.experiment, data.train, known).spent
    check_affordable(prepared.experiment, proof, prepared.spent)
    return proof


def _examples(data: SweepData, sets: Mapping[str, TokenisedDataset]) -> list[dict[str, Any]]:
    """Three rows as they are trained on; where trials differ in their rows, one of each set."""
    if data.tokenizer is None:
        return []
    tokenizer = load_tokenizer(data.tokenizer)
    if not sets:
        return [shown(data.train, tokenizer, row)._asdict() for row in typical(data.train)]
    first = {name: shown(rows, tokenizer, 0)._asdict() for name, rows in sets.items()}
    return [{**row, "id": f"{name}: {row['id']}"} for name, row in first.items()]


def _state(prepared: PreparedSweep) -> str:
    if prepared.existing is None:
        return "new"
    changed = ", ".join(prepared.amendments)
    if changed:
        return f"exists; would amend {changed}"
    over = prepared.existing.is_complete
    return "exists; has ended, nothing is left to do" if over else "exists; would continue"
