"""Commands for who has no experiment file yet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crucible_tinkex.cli.commands.options import DEFAULT_STORAGE, Address, Json, Quiet


def tune(
    data: Annotated[str, typer.Argument(help="Training rows (docs/data.md).", show_default=False)],
    eval: Annotated[
        str | None, typer.Option(help="Held-out rows (default: some of the training rows).")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model (default: smollm2-135m-instruct, embedded).")
    ] = None,
    service: Annotated[
        str | None,
        typer.Option(
            help="Address, or `embedded`: this machine (default: embedded, but hosted Tinker for "
            "another --base where a key is set)."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Its limit: 2h, 30min, 1e6tok, 500steps, 20trials, 5usd."),
    ] = None,
    prices: Annotated[
        str | None, typer.Option(help="Price table, for a budget in dollars (docs/budgets.md).")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Configurations to try (default: by the budget).")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder of the adapter (default: `adapter` of the sweep).")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the sweep (default: `tune-` and the file's name).")
    ] = None,
    storage: Annotated[str, typer.Option(help="Folder of all sweeps.")] = DEFAULT_STORAGE,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the best settings for a data file, and keep the adapter. Called again, it goes on."""
    from crucible_tinkex.cli.sweeps.tuning import tune_data
    from crucible_tinkex.tuning.tuning import Wish

    wish = Wish(data, eval, base, service, budget, prices, trials, out, name, storage)
    raise typer.Exit(tune_data(wish, address=address, json=json, quiet=quiet))


def init(
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("experiment.toml"),
) -> None:
    """Write a commented experiment file. Never overwrites one."""
    from crucible_tinkex.cli.sweeps.starting import write_template

    write_template(file)
