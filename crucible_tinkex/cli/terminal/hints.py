"""Command lines that are shown to people, so quoted that they can be pasted into a shell."""

from __future__ import annotations

import shlex

from crucible_tinkex.config.sweep.run import DEFAULT_STORAGE
from crucible_tinkex.names import SweepPaths


def sweep_arguments(paths: SweepPaths) -> str:
    """How to name a sweep on the command line, from the current folder."""
    storage = paths.root.parent
    name = shlex.quote(paths.root.name)
    if storage == SweepPaths.of(DEFAULT_STORAGE, paths.root.name).root.parent:
        return name
    return f"{name} --storage {shlex.quote(str(storage))}"
