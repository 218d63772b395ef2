"""`python drive_sweep.py FILE STORAGE ADDRESS`: one driver, as the command line has it, except
that it takes a head for lost that has not answered for 4 seconds."""

from __future__ import annotations

import sys
from functools import partialmethod
from typing import Any, cast

from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.runtime.cluster import Runtime
from crucible_tinkex.sweep.launch import Launch
from crucible_tinkex.sweep.preparing.preparation import prepare


def main(file: str, storage: str, address: str) -> int:
    prepared = prepare(Experiment.from_toml(file), storage=storage)
    try:
        return Launch(prepared, address=address, executor="ray").run().exit_code
    except CrucibleError as e:
        print(f"error: {type(e).__name__}: {e}", file=sys.stderr)
        return e.exit_code


if __name__ == "__main__":
    cast(Any, Runtime).watch = partialmethod(Runtime.watch, poll_s=0.5, lost_s=4.0)
    sys.exit(main(*sys.argv[1:]))
