"""Bad input is refused with a message that helps, the right exit code, and nothing touched."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from nano_sweeps import LOCAL, FinishedRun, Workspace

Spoil = Callable[[Path], object]


def edit(old: str, new: str) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "nano.toml"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "nano.toml").unlink(), "no experiment file nano.toml"),
        (lambda f: (f / "train.jsonl").unlink(), "train.jsonl"),
        (lambda f: (f / "train.jsonl").write_text(""), "train.jsonl"),
        (lambda f: (f / "eval.jsonl").write_text('{"prompt": "a"'), "eval.jsonl, line 1"),
        (lambda f: (f / "train.jsonl").write_text('{"promt": "a"}'), "train.jsonl, line 1"),
        (edit("max_steps", "max_step"), "did you mean 'max_steps'"),
        (edit("[2, 8]", "[]"), "'lora.rank' has no values"),
        (edit("1e-6, 3e-3", "0.0"), "greater than 0"),
        (edit("1e-6, 3e-3", "-1.0"), "greater than 0"),
        (edit('eval = "eval.jsonl"', ""), "data.eval"),
    ],
)
def test_refused_before_anything_starts(workspace: Workspace, spoil: Spoil, message: str) -> None:
    spoil(workspace.folder)
    result = workspace.here("run", "nano.toml")
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (workspace.folder / "runs").exists()


def test_an_unknown_base_is_refused_and_can_be_mended(workspace: Workspace) -> None:
    edit('base = "nano"', 'base = "nan"')(workspace.folder)
    result = workspace.crucible("run", "nano.toml", *LOCAL)
    assert result.returncode == 2, result.stderr
    assert "nano" in result.stderr
    assert "smollm2-135m-instruct" in result.stderr
    edit('base = "nan"', 'base = "nano"')(workspace.folder)
    assert workspace.here("plan", "nano.toml").returncode == 0


def test_hosted_tinker_without_a_key_says_how_to_go_without(workspace: Workspace) -> None:
    edit('base_url = "embedded"', "")(workspace.folder)
    result = workspace.here("plan", "nano.toml")
    assert result.returncode in (2, 4), result.stderr
    assert "TINKER_API_KEY" in result.stderr
    assert "embedded" in result.stderr


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("train.max_length=16", "train.max_length"),
        ("model.base=smollm2-135m-instruct", "model.base"),
        ("service.dtype=bf16", "service.dtype"),
    ],
)
def test_what_would_make_numbers_incomparable_is_refused(
    finished: FinishedRun, setting: str, changed: str
) -> None:
    workspace = finished.workspace
    before = {p: p.stat().st_mtime_ns for p in workspace.sweep().rglob("*")}
    result = workspace.here("run", "nano.toml", "--set", setting)
    assert result.returncode == 2
    assert f"changed: {changed}" in result.stderr
    assert {p: p.stat().st_mtime_ns for p in workspace.sweep().rglob("*")} == before


def test_a_folder_that_is_no_sweep_is_left_alone(workspace: Workspace) -> None:
    workspace.sweep().mkdir(parents=True)
    (workspace.sweep() / "thesis.tex").write_text("precious")
    result = workspace.here("run", "nano.toml")
    assert result.returncode == 2
    assert "is not a sweep" in result.stderr
    assert [p.name for p in workspace.sweep().iterdir()] == ["thesis.tex"]


def test_serve_refuses_a_port_in_use(workspace: Workspace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = workspace.crucible("serve", "--model", "nano", "--port", port)
    assert result.returncode == 2
    assert port in result.stderr


def test_serve_refuses_the_open_network_without_a_key_file(workspace: Workspace) -> None:
    result = workspace.crucible("serve", "--model", "nano", "--host", "0.0.0.0")
    assert result.returncode == 2
    assert "api-key-file" in result.stderr or "api_key_file" in result.stderr


def test_a_service_that_is_not_there_ends_with_4(workspace: Workspace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (workspace.folder / "key").write_text("tml-test")
    section = f'base_url = "http://127.0.0.1:{port}"\napi_key_file = "{workspace.folder}/key"'
    edit('base_url = "embedded"', section)(workspace.folder)
    result = workspace.here("plan", "nano.toml")
    assert result.returncode == 4, result.stderr
    assert str(port) in result.stderr


def test_json_goes_to_stdout_and_nothing_else(finished: FinishedRun) -> None:
    result = finished.workspace.here("status", "nano", "--json")
    assert json.loads(result.stdout)["best"]["id"]
    assert result.stderr == ""
