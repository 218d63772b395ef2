"""`crucible doctor` says what works, names what does not with its remedy, and makes nothing."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from in_process import crucible
from nano_experiment import make_experiment, wait_for

import crucible_tinkex as ct
from crucible_tinkex.doctor import Finding, checks, looked
from crucible_tinkex.doctor.services import VARIABLES
from crucible_tinkex.errors import StorageError

FILE = """
name = "small"
[service]
base_url = "embedded"
[model]
base = "{base}"
[data]
train = "train.jsonl"
[search.space]
"lora.rank" = [2]
[run]
executor = "local"
"""


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished sweep."""
    folder = tmp_path_factory.mktemp("doctor")
    ct.run(make_experiment(folder))
    return folder / "runs"


def doctor(folder: Path, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = crucible("doctor", *arguments, "--json", folder=folder)
    return done.returncode, {found["name"]: found for found in json.loads(done.stdout)}


def look(storage: Path, name: str, *, deep: bool = False, address: str | None = None) -> Finding:
    every = checks(None, storage=storage, address=address, deep=deep)
    return looked(next(check for check in every if check.name == name))


def test_the_embedded_server_is_started_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(FILE.format(base="nano"))
    code, found = doctor(tmp_path, "small.toml")
    assert code == 0 and list(found) == ["software", "machine", "storage", "embedded server"]
    assert found["embedded server"]["says"] == "starts and answers, with nano"
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


def test_an_unknown_base_ends_with_the_servers_code(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(FILE.format(base="nano-2"))
    done = crucible("doctor", "small.toml", folder=tmp_path)
    assert done.returncode == 2
    assert "failed  embedded server" in done.stdout


def test_every_sweep_is_read(storage: Path) -> None:
    found = look(storage, "sweep small", deep=True)
    assert found == Finding("sweep small", "ok", "done, 3 done; 8 steps in its events")


def test_a_damaged_journal_is_named(storage: Path, tmp_path: Path) -> None:
    shutil.copytree(storage, tmp_path / "runs")
    file = tmp_path / "runs" / "small" / "journal" / "000001.log"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    found = look(tmp_path / "runs", "sweep small")
    assert (found.state, found.exit_code) == ("failed", StorageError.exit_code)
    assert str(file) in found.says
    assert file.read_bytes() == data, "looking mends nothing"


def test_events_that_are_missing_are_seen_by_a_deep_look(storage: Path, tmp_path: Path) -> None:
    shutil.copytree(storage, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "small" / "events" / "kind=training_step")
    assert look(tmp_path / "runs", "sweep small").state == "ok"
    found = look(tmp_path / "runs", "sweep small", deep=True)
    assert (found.state, found.exit_code) == ("failed", StorageError.exit_code)
    assert "did 4 steps, and the events have 0" in found.says


def test_an_interrupted_sweep_is_told_how_to_go_on(storage: Path, tmp_path: Path) -> None:
    running = ct.start(make_experiment(tmp_path, steps=4000))
    wait_for(lambda: running.view.steps_done)
    running.stop()
    running.wait(60)
    found = look(tmp_path / "runs", "sweep small")
    assert found.state == "note"
    assert f"crucible resume small --storage {tmp_path / 'runs'}" in found.says


def test_a_storage_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    found = look(tmp_path / "runs", "storage")
    assert (found.state, found.exit_code) == ("failed", StorageError.exit_code)
    assert f"{tmp_path / 'runs'} is a file" in found.says


def test_a_bucket_is_refused_as_a_run_refuses_it(tmp_path: Path) -> None:
    done = crucible("doctor", "--storage", "s3://bucket/runs", folder=tmp_path)
    assert done.returncode == 2
    assert "'s3://bucket/runs' must be a local or shared folder" in done.stderr


def test_no_account_is_no_fault(tmp_path: Path) -> None:
    found = look(tmp_path, "service")
    assert (found.state, found.exit_code) == ("note", 0)
    assert "TINKER_API_KEY" in found.says


def test_a_service_that_refuses_is_named_and_the_key_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("TINKER_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("TINKER_API_KEY", "tml-canary-0123456789")
    found = look(tmp_path, "service")
    assert (found.state, found.exit_code) == ("failed", 4)
    assert str(port) in found.says and "canary" not in found.says


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    found = look(tmp_path, "ray", address="127.0.0.1:1")
    assert (found.state, found.exit_code) == ("failed", 4)
    assert "ray start --head" in found.says


@pytest.mark.ray
def test_all_of_it_on_real_parts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "crucible_tinkex", "doctor", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {finding["name"]: finding["says"] for finding in json.loads(done.stdout)}
    assert found["ray"].startswith("1 node, ") and found["ray"].endswith("actors answer")
    assert list(found)[-3:] == ["embedded server", "service", "ray"]
    assert not list(tmp_path.iterdir())
