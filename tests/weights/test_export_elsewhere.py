"""Adapters that another service keeps: downloaded, and made for sampling where there was none."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nano_sweep import make_experiment
from safetensors.numpy import load_file

import crucible_tinkex as ct
from crucible_tinkex.errors import ServiceError
from crucible_tinkex.weights.export import export_trial


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server that no sweep owns."""
    folder = tmp_path_factory.mktemp("service")
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "crucible_tinkex", "serve", "--exit-with-parent"]
    command += ["--model", "nano", "--port", "0", "--data-dir", str(folder), "--threads", "1"]
    command += ["--ready-file", str(ready), "--dtype", "fp32"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 180
        while not ready.exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        yield json.loads(ready.read_text())
        process.kill()


def test_an_adapter_is_downloaded(served: dict[str, str], sweep: ct.Sweep, tmp_path: Path) -> None:
    service = {"base_url": served["base_url"], "api_key_file": served["api_key_file"]}
    train = {"sampler_checkpoint": False}
    experiment = make_experiment(tmp_path / "x", service={**service, "dtype": "auto"}, train=train)
    other = ct.run(experiment)
    best, ours = other.best(), sweep.best()
    assert best is not None and ours is not None and best["samplers"] == []
    done = best.export(tmp_path / "adapter")  # made of the last resumable checkpoint
    same = ours.export(tmp_path / "ours")
    found, wanted = (load_file(d.folder / "adapter_model.safetensors") for d in (done, same))
    assert found.keys() == wanted.keys()
    assert all((found[name] == wanted[name]).all() for name in wanted)  # the same experiment
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "nano"
    with pytest.raises(ServiceError):  # the key is another's
        Path(served["api_key_file"]).write_text("tml-wrong-key-0000000000000000")
        export_trial(other.paths, None, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
