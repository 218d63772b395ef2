"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crucible_tinkex.errors import ConfigError

DEFAULT_STORAGE = "runs"
LAST_PORT = 65535


def _existing(storage: str) -> str:
    """Raises `ConfigError` for a folder that is not there, as a misspelt one is; the default one
    may be still to come."""
    if storage != DEFAULT_STORAGE and not Path(storage).expanduser().exists():
        raise ConfigError(f"--storage {storage}: there is no such local or shared folder")
    return storage


File = Annotated[Path, typer.Argument(help="Experiment file (TOML).", show_default=False)]
Sweep = Annotated[str, typer.Argument(help="Name of the sweep.", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key: optimizer.learning_rate=1e-4")
]
Storage = Annotated[
    str | None, typer.Option(help="Folder of all sweeps (default: run.storage, runs).")
]
Name = Annotated[str | None, typer.Option(help="Name of the sweep (default: of the experiment).")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join (default: RAY_ADDRESS, else a local one).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]

Trials = Annotated[
    list[str] | None, typer.Argument(help="Ids, names or numbers (default: the whole sweep).")
]

Trial = Annotated[str | None, typer.Argument(help="Its id, name or number (default: the best).")]
Folder = Annotated[str, typer.Option("--storage", help="Folder of all sweeps.")]
ExistingFolder = Annotated[
    str, typer.Option("--storage", help="Folder of all sweeps.", callback=_existing)
]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="May be given several times.")]
