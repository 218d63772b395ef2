"""The `crucible` command. Data goes to stdout, progress and errors to stderr.

Every command imports what it needs when it runs, so that `crucible --help` answers at once. Exit
codes: 0 done, 1 some trials failed, 2 usage or config, 3 budget used up, 4 service, 5 storage, 130
interrupted (resumable).
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from crucible_tinkex.cli.commands import beginning, checking, findings, orders, serving, sweeps
from crucible_tinkex.cli.weights.chat import chat
from crucible_tinkex.cli.weights.checkpoints import checkpoints_app
from crucible_tinkex.cli.weights.evaluate import evaluate
from crucible_tinkex.cli.weights.export import export
from crucible_tinkex.cli.weights.models import models_app
from crucible_tinkex.errors import CrucibleError, StorageError
from crucible_tinkex.version import VERSION

app = typer.Typer(
    name="crucible",
    help="Parallel, crash-safe LoRA experiments over the Tinker API.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"crucible {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    pass


for _command in (
    *(beginning.tune, beginning.init, checking.doctor),
    *(sweeps.run, sweeps.plan, sweeps.resume, sweeps.retry, sweeps.submit),
    *(orders.stop, orders.pause, orders.unpause, orders.clone, orders.extend),
    *(findings.status, findings.conclude, findings.compare, findings.query),
    *(findings.report, findings.watch, findings.tb),
    *(evaluate, export, chat, serving.serve),
):
    app.command()(_command)
app.command("list")(findings.list_)
app.add_typer(models_app)
app.add_typer(checkpoints_app)


def main() -> None:
    """The console script: errors of this package become one clear message and an exit code."""
    try:
        app()
    except CrucibleError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(0)
    except OSError as e:  # what the system refuses, where nobody could say it better
        from crucible_tinkex.storage.files import reason

        print(f"error: {e.filename or 'the system'}: {reason(e)}", file=sys.stderr)
        sys.exit(StorageError.exit_code)
    except SystemExit as end:
        if _by_ctrl_c(end):
            print("interrupted; run the same command to continue", file=sys.stderr)
        raise


def _by_ctrl_c(end: SystemExit) -> bool:
    """Whether a command was interrupted that did not look after it: Typer says no word then."""
    return isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt)
