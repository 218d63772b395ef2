"""`crucible submit`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from crucible_tinkex.cli.sweeps.running import read_experiment
from crucible_tinkex.runtime.jobs import SubmittedJob, submit_job
from crucible_tinkex.sweep.preparing.preparation import prepare


def submit_file(
    file: Path,
    assignments: Sequence[str],
    *,
    address: str,
    name: str | None,
    storage: str | None,
    wait: bool,
) -> int:
    """Check the experiment here, then run it there. Returns the exit code."""
    experiment, _ = read_experiment(file, assignments)
    prepared = prepare(experiment, storage=storage, name=name)
    arguments = ["run", str(file.resolve()), "--name", prepared.name]
    arguments += ["--storage", str(prepared.paths.root.parent)]
    arguments += [part for a in assignments for part in ("--set", a)]
    job = submit_job(address, sweep=prepared.name, arguments=arguments)
    verb = "submitted" if job.is_new else "already running"
    print(
        f"{verb}: {job.submission_id} "
        f"(stop it: ray job stop {job.submission_id} --address {address})",
        file=sys.stderr,
    )
    if not wait:
        print(job.submission_id)
        return 0
    asyncio.run(_follow(job))
    return job.exit_code()


async def _follow(job: SubmittedJob) -> None:
    async for text in job.lines():
        sys.stdout.write(text)
        sys.stdout.flush()
