"""Looking at data and service before anything is chosen: lengths in the base's own tokens, and how
fast it trains where a budget is in hours.

Nothing is left behind: what is needed on disk lies in a temporary folder. One embedded server
answers all that is asked here, as a start costs more than the rest.
"""

from __future__ import annotations

import asyncio
import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from crucible_tinkex.client.resolved import ResolvedService
from crucible_tinkex.config import Experiment
from crucible_tinkex.config.section import set_dotted
from crucible_tinkex.datasets import LengthStatistics
from crucible_tinkex.runtime.embedded import EmbeddedServer
from crucible_tinkex.sweep.connection import connected
from crucible_tinkex.sweep.launch import Launch
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep, prepare
from crucible_tinkex.telemetry.query import read_events
from crucible_tinkex.tuning.choices import BATCH, LONGEST, Facts

UNCUT = 1_000_000
"""Longer than any row that is looked at."""
PROBE_STEPS = 5


def look(
    draft: Mapping[str, Any],
    *,
    timed: bool,
    tokens_per_s: float | None = None,
    doing: Callable[[str], object] = lambda line: None,
) -> Facts:
    """`draft`: an experiment with data, base, service and budget. `timed`: also train a few steps
    to see how fast it is; else that is `tokens_per_s`. `doing` hears what takes a while, before it
    does. Raises what is wrong with them."""
    with tempfile.TemporaryDirectory(prefix="crucible-") as folder:
        experiment = _experiment(draft, folder)
        doing("looking at the data and the service")
        prepared = prepare(experiment)
        with _served(prepared, Path(folder) / "service") as service:
            facts = asyncio.run(_looked(prepared, service))
            if timed:
                doing(
                    f"training {PROBE_STEPS} steps to see how fast {experiment.model.base} is here "
                    "(the budget counts from the sweep's start)"
                )
                tokens_per_s = _speed(facts, draft, folder, service)
        return replace(facts, tokens_per_s=tokens_per_s)


@contextmanager
def _served(prepared: PreparedSweep, folder: Path) -> Iterator[ResolvedService | None]:
    """The embedded server, if the experiment asks for it. Nobody starts it again should it die:
    what is asked here is soon over, and says so."""
    section = prepared.experiment.service
    if not section.embedded:
        yield None
        return
    server = EmbeddedServer(section, model=prepared.experiment.model.base, data_dir=folder)
    try:
        endpoint = asyncio.run(server.start())
        yield ResolvedService(endpoint.base_url, endpoint.api_key_file, section.transport)
    finally:
        server.stop()


def _experiment(draft: Mapping[str, Any], folder: str, **settings: Any) -> Experiment:
    """Without evaluation: only the training rows are looked at."""
    raw: dict[str, Any] = copy.deepcopy(dict(draft))
    fixed = {
        "name": "look",
        "run.storage": folder,
        "run.executor": "local",
        "search.metric": "train/nll",
        "search.reference": False,
        "service.attest": False,
        "train.max_length": UNCUT,
        "data.too_long": "truncate",
    }
    for key, value in {**fixed, **settings}.items():
        set_dotted(raw, key, value)
    return Experiment.build(raw)


async def _looked(prepared: PreparedSweep, service: ResolvedService | None) -> Facts:
    experiment = prepared.experiment
    async with connected(prepared, service=service) as connection:
        return Facts(
            lengths=LengthStatistics.of(connection.data.train, batch_size=1),
            format=", ".join(dict.fromkeys(prepared.declared.rows.formats)),
            has_eval=experiment.data.evaluates,
            embedded=experiment.service.embedded,
            context=connection.model.max_context_length,
            dollars_per_token=prepared.price.train / 1e6 if prepared.price else None,
        )


def _speed(
    facts: Facts, draft: Mapping[str, Any], folder: str, service: ResolvedService | None
) -> float | None:
    longest = LONGEST[facts.embedded]
    short: dict[str, Any] = {
        "train.max_steps": PROBE_STEPS,
        "train.batch_size": min(BATCH, facts.lengths.rows),
        "train.max_length": min(facts.lengths.longest, facts.context or longest, longest),
        "train.sampler_checkpoint": False,
        "data.eval": None,
        "budget": {},
    }
    prepared = prepare(_experiment(draft, folder, **short))
    Launch(prepared, service=service).run()
    found = read_events(prepared.paths.events, name="perf/tokens_per_s")["value"].to_pylist()
    speeds = [value for value in found[1:] if value is not None]
    return median(speeds) if speeds else None
