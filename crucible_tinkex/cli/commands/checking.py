"""`crucible doctor`: whether this machine can run what it is asked to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crucible_tinkex.cli.commands.options import DEFAULT_STORAGE, Address, Json, Set, Storage


def doctor(
    file: Annotated[
        Path | None,
        typer.Argument(help="An experiment file: look at what it needs.", show_default=False),
    ] = None,
    set_: Set = None,
    storage: Storage = None,
    address: Address = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read all events of every sweep.")
    ] = False,
    json: Json = False,
) -> None:
    """Look at this machine, the service, Ray and the storage: what works, and what to do."""
    from crucible_tinkex.cli.sweeps.reading import read_experiment
    from crucible_tinkex.cli.terminal.health import show_health
    from crucible_tinkex.doctor import checks
    from crucible_tinkex.names import storage_folder

    experiment = None if file is None else read_experiment(file, set_ or [])[0]
    where = storage or (experiment.run.storage if experiment else DEFAULT_STORAGE)
    found = checks(experiment, storage=storage_folder(where), address=address, deep=deep)
    raise typer.Exit(show_health(found, json=json))
