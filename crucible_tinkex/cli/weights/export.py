"""`crucible export`: a trial's adapter as a folder."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from crucible_tinkex.cli.commands.options import DEFAULT_STORAGE, Folder, Json, Sweep, Trial
from crucible_tinkex.errors import ConfigError


def export(
    sweep: Sweep,
    to: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    trial: Trial = None,
    storage: Folder = DEFAULT_STORAGE,
    merged: Annotated[
        bool, typer.Option("--merged", help="A whole Hugging Face model, not an adapter.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="With --merged: folder of the base model, where needed.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files of the same names in the folder.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a trial's adapter as a folder that peft, transformers and vLLM load."""
    from crucible_tinkex.sweep.results.views.summary import existing_sweep
    from crucible_tinkex.weights.export import export_trial

    if base is not None and not merged:
        raise ConfigError("--base goes with --merged: an adapter holds nothing of its base")
    paths = existing_sweep(storage, sweep)
    done = export_trial(paths, trial, to, merged=merged, base=base, force=force)
    if json:
        print(json_module.dumps(done.summary()))
        return
    what = "merged model" if done.merged else "adapter"
    print(f"{what} of trial {done.trial}, step {done.step}, base {done.base_model}: {to}")
