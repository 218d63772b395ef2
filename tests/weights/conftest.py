"""One sweep that has ended, for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from nano_sweep import make_experiment

import crucible_tinkex as ct


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> ct.Sweep:
    """Must not be changed."""
    models = {"auto_register": "digits", "tags": ["demo"]}
    folder = tmp_path_factory.mktemp("left") / "behind"
    done = ct.run(make_experiment(folder, models=models))
    assert done.exit_code == 0
    return done


@pytest.fixture
def storage(sweep: ct.Sweep) -> Path:
    return sweep.paths.root.parent
