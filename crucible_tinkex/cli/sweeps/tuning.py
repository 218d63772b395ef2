"""`crucible tune`: says what it chose, runs it, prints the verdict, keeps the adapter."""

from __future__ import annotations

import json as json_module
from typing import Any

from crucible_tinkex.cli.sweeps.execution import execute, run_prepared
from crucible_tinkex.cli.terminal.tables import print_sentences
from crucible_tinkex.sweep.orders.hints import sweep_arguments
from crucible_tinkex.sweep.results.views.summary import read_state, summary
from crucible_tinkex.sweep.signals import INTERRUPTED_CODE
from crucible_tinkex.tuning.tuning import Tuning, Wish, propose
from crucible_tinkex.weights.export import Exported


def tune_data(wish: Wish, *, address: str | None, json: bool, quiet: bool) -> int:
    """Returns the exit code."""
    tuning = propose(wish, lambda line: _say(f"training {line}"), _unheard if quiet else _say)
    _explain(tuning)
    prepared = tuning.prepared
    if json:
        code = run_prepared(prepared, address=address, quiet=quiet).exit_code
    else:
        code = execute(prepared, address=address, json=False, quiet=quiet)
    exported = None if code == INTERRUPTED_CODE else tuning.export()
    if json:
        print(json_module.dumps(_found(tuning, exported)))
    else:
        _print_adapter(tuning, exported)
    return code


def _say(line: str) -> None:
    print_sentences(line, to_stderr=True)


def _unheard(line: str) -> None:
    pass


def _explain(tuning: Tuning) -> None:
    _say("what I chose, and why:")
    for reason in (*tuning.reasons, f"the file that does the same: {tuning.file}"):
        _say(f"- {reason}")


def _found(tuning: Tuning, exported: Exported | None) -> dict[str, Any]:
    """Stable: keys are only ever added."""
    paths = tuning.prepared.paths
    return {
        **summary(read_state(paths), paths),
        "chosen": list(tuning.reasons),
        "experiment_file": str(tuning.file),
        "adapter": None if exported is None else exported.summary(),
    }


def _print_adapter(tuning: Tuning, exported: Exported | None) -> None:
    if exported is None:
        print("adapter: none yet; the same command goes on, --budget gives it more")
        return
    print(f"adapter: {exported.folder} (trial {exported.trial}, step {exported.step})")
    print(f"chat:    crucible chat {sweep_arguments(tuning.prepared.paths)}")
