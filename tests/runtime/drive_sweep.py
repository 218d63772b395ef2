"""`python drive_sweep.py FILE STORAGE [ADDRESS]`: one driver, as the command line has it."""

from __future__ import annotations

import sys

from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.sweep.launch import Launch
from crucible_tinkex.sweep.preparation import prepare


def main(file: str, storage: str, address: str | None = None) -> int:
    prepared = prepare(Experiment.from_toml(file), storage=storage)
    try:
        return Launch(prepared, address=address).run().exit_code
    except CrucibleError as e:
        print(f"error: {type(e).__name__}: {e}", file=sys.stderr)
        return e.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
