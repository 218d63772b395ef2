"""Environments in which Ray's worker processes are not what the driver is.

Python imports a `sitecustomize` of its path before anything else, so a fault that only workers have
can be put there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

WORKER = """
import os, sys
if any("default_worker.py" in a for a in sys.orig_argv):
    {action}
"""
CANNOT_TRAIN = """
    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name == "crucible_tinkex.training.attempt.session":
                raise ImportError("libtrain.so.1: cannot open shared object file")
    sys.meta_path.insert(0, Refuse())
"""
DIES = "os._exit(3)"
ELSEWHERE = 'os.environ["TINKER_BASE_URL"] = "http://127.0.0.1:9"'


def workers_that(folder: Path, action: str) -> Mapping[str, str]:
    """Environment variables of a driver whose workers do `action` first."""
    place = folder / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text(WORKER.format(action=action.strip()))
    path = [str(place), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(p for p in path if p)}
