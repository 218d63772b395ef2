"""Sessions on every node of a cluster; a node that dies in the middle; a head that dies."""

from __future__ import annotations

from pathlib import Path

import pytest
from clusters import (
    cluster,
    results,
    service,
    session_actors,
    start_driver,
    wait_for_checkpoints,
    write_experiment,
)

from crucible_tinkex.config import Experiment
from crucible_tinkex.sweep.launch import Launch
from crucible_tinkex.sweep.preparing.preparation import prepare

pytestmark = pytest.mark.ray
STEPS = 80


def test_sessions_run_on_every_node_and_outlive_one(tmp_path: Path) -> None:
    with service(tmp_path) as (url, key), cluster(3) as ray_cluster:
        file = write_experiment(tmp_path, url=url, key=key, steps=STEPS)
        driver = start_driver(file, tmp_path / "runs", ray_cluster.address)
        try:
            sweep = tmp_path / "runs" / "nano"
            wait_for_checkpoints(sweep, 4, driver)
            used = {node: session_actors(node) for node in ray_cluster.raylets}
            assert all(used.values()), used
            ray_cluster.raylets[1].kill()
            _, err = driver.communicate(timeout=150)
            assert driver.returncode == 0, err
        finally:
            driver.kill()
            driver.communicate()
        prepared = prepare(Experiment.from_toml(file), storage=str(tmp_path / "alone"))
        assert Launch(prepared, executor="local").run().exit_code == 0
    assert results(sweep) == results(tmp_path / "alone" / "nano")
    assert {state for state, _, _ in results(sweep).values()} == {"done"}


def test_a_cluster_that_is_lost_ends_the_run_with_a_name(tmp_path: Path) -> None:
    """Ray's own end, after a minute, is a text of its own and exit code 1. The driver is told to
    see it sooner than by itself: see `drive_sweep`."""
    with service(tmp_path) as (url, key):
        file = write_experiment(tmp_path, url=url, key=key, steps=3000)
        sweep = tmp_path / "runs" / "nano"
        with cluster(1) as ray_cluster:
            driver = start_driver(file, tmp_path / "runs", ray_cluster.address)
            try:
                wait_for_checkpoints(sweep, 4, driver)
                ray_cluster.head.kill()
                _, err = driver.communicate(timeout=58)
            finally:
                driver.kill()
                driver.communicate()
    assert driver.returncode == 4, err
    assert "ClusterLostError" in err and "run the same command to continue" in err
    assert "Failed to connect to GCS" not in err
    trained = [state for state, step, _ in results(sweep).values() if step]
    assert trained == ["pending"] * 4, "saved while the actors still answered"
