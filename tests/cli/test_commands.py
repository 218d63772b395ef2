"""Commands that look at a sweep: what they say, and how they end."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import in_process
import psutil
import pytest
from nano_experiment import make_experiment

import crucible_tinkex as ct

COMMAND = [sys.executable, "-m", "crucible_tinkex"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `runs/small`, which has ended."""
    folder = tmp_path_factory.mktemp("my sweeps")
    assert ct.run(make_experiment(folder)).exit_code == 0
    return folder


def crucible(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return in_process.crucible(*arguments, folder=folder)


@pytest.mark.parametrize("view", ["trials", "steps", "evaluations", "checkpoints", "requests"])
def test_every_view_answers(folder: Path, view: str) -> None:
    found = crucible(folder, "query", "small", f"select * from {view}", "--json")
    assert found.returncode == 0, found.stderr
    assert isinstance(json.loads(found.stdout), list)
    assert view in crucible(folder, "query", "--help").stdout


def test_a_query_shows_forty_rows_and_says_how_to_get_all(folder: Path) -> None:
    sql = "select * from range(100) r(n)"
    short = crucible(folder, "query", "small", sql)
    assert "40 of 100 rows; all: --limit 0, or --json" in short.stderr
    assert "99" not in short.stdout
    assert "99" in crucible(folder, "query", "small", sql, "--limit", "0").stdout
    assert len(json.loads(crucible(folder, "query", "small", sql, "--json").stdout)) == 100
    assert crucible(folder, "query", "small", sql, "--limit", "-1").returncode == 2


def test_several_sweeps_are_asked_at_once(folder: Path) -> None:
    shutil.copytree(folder / "runs" / "small", folder / "runs" / "copy", dirs_exist_ok=True)
    sql = "select sweep_id, count(*) as n from {} where trial_id is not null group by all"
    for view in ("trials", "steps", "evaluations", "checkpoints"):
        once, twice = (
            json.loads(crucible(folder, "query", names, sql.format(view), "--json").stdout)
            for names in ("small,small", "small,copy")
        )
        assert once == twice and once[0]["sweep_id"].startswith("small-")
    assert ct.query("from trials", "small", storage=str(folder / "runs")).num_rows == 3
    assert ct.query("from trials", "small", "copy", storage=str(folder / "runs")).num_rows == 6
    unknown = crucible(folder, "query", "small,nobody", "from trials")
    assert (unknown.returncode, "no sweep 'nobody'" in unknown.stderr) == (2, True)


def test_a_plan_says_that_a_sweep_has_ended(folder: Path) -> None:
    """And what comes after an ended one with a seed each, `conclude` says."""
    where = ("runs/small/experiment.toml", "--storage", "runs")
    assert "has ended, nothing is left to do" in crucible(folder, "plan", *where).stdout
    more = crucible(folder, "plan", *where, "--set", "search.seeds=[0, 1]").stdout
    assert "would amend search.seeds" in more and "has ended" not in more
    said = crucible(folder, "conclude", "small").stdout
    assert "to be surer: crucible extend small --set search.confirm=auto && crucible" in said


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_query_is_exported(folder: Path, tmp_path: Path, form: str) -> None:
    sql, path = "select n from range(100) r(n)", tmp_path / f"out.{form}"
    found = crucible(folder, "query", "small", sql, "-o", str(path))
    assert (found.returncode, found.stdout) == (0, "")
    assert "100 rows in" in found.stderr
    assert path.stat().st_size > 100
    piped = crucible(folder, "query", "small", sql, "--format", form, "--limit", "2")
    if form == "parquet":
        assert (piped.returncode, "-o FILE" in piped.stderr) == (2, True)
    else:
        assert piped.stdout.split() == {"csv": ['"n"', "0", "1"]}.get(
            form, ['{"n":', "0}", '{"n":', "1}"]
        )
    named = crucible(folder, "query", "small", sql, "-o", str(tmp_path / "out.txt"))
    assert (named.returncode, "name it .csv" in named.stderr) == (2, True)


def test_a_sweep_that_only_starts_has_a_status(folder: Path, tmp_path: Path) -> None:
    start = tmp_path / "runs" / "small"
    start.mkdir(parents=True)
    shutil.copy(folder / "runs" / "small" / "resolved.json", start)
    for make_journal in (False, True):
        if make_journal:
            (start / "journal").mkdir()
        found = crucible(tmp_path, "status", "small", "--json")
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout)["trials"] == []
        assert crucible(tmp_path, "status", "small").returncode == 0
        assert "small" in crucible(tmp_path, "list").stdout


def test_damage_and_what_is_in_the_way_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "file").write_text("x")
    found = crucible(tmp_path, "status", "file")
    assert (found.returncode, "is a file" in found.stderr) == (2, True)
    shutil.copytree(folder / "runs" / "small", tmp_path / "runs" / "small")
    (tmp_path / "runs" / "small" / "resolved.json").write_text('{"x":')
    found = crucible(tmp_path, "resume", "small")
    assert (found.returncode, "resolved.json is damaged" in found.stderr) == (5, True)
    journal = next((tmp_path / "runs" / "small" / "journal").glob("*.log"))
    journal.write_bytes(os.urandom(journal.stat().st_size))
    found = crucible(tmp_path, "status", "small")
    assert (found.returncode, journal.name in found.stderr) == (5, True)
    assert "corrupt" in crucible(tmp_path, "list").stdout


def test_a_port_in_use_is_named_with_the_next_free_one(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        storage = str(folder / "runs")
        found = crucible(folder / "runs", "tb", "small", "--storage", storage, "--port", str(port))
    assert found.returncode == 2
    assert f"port {port} is in use; run: crucible tb small --storage '{storage}'" in found.stderr


@pytest.fixture
def board(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [*COMMAND, "tb", "small", "--port", "0", "--rebuild"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_tensorboard_ends_with_the_command(
    board: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    until = time.monotonic() + 30
    children: list[psutil.Process] = []
    while not children and time.monotonic() < until:
        time.sleep(0.1)
        children = psutil.Process(board.pid).children(recursive=True)
    assert children
    board.send_signal(number)
    board.wait(20)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert number is not signal.SIGINT or board.returncode == 0


def test_tensorboard_is_not_rebuilt_while_the_sweep_runs(folder: Path) -> None:
    with (folder / "runs" / "small" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = crucible(folder, "tb", "small", "--port", "0", "--rebuild")
    assert (found.returncode, "small is running" in found.stderr) == (2, True)


def test_a_process_says_the_same_and_ends_with_the_code(tmp_path: Path) -> None:
    told = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"crucible {ct.__version__}\n"
    refused = subprocess.run(
        [*COMMAND, "status", "none"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    here = crucible(tmp_path, "status", "none")
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", here.stderr)
    assert here.returncode == 2 and here.stderr.startswith("error: ")


@pytest.mark.parametrize("after_s", [0.3, 1, 3, 8])
def test_ctrl_c_ends_a_run_at_any_moment(tmp_path: Path, after_s: float) -> None:
    make_experiment(tmp_path, steps=4000)
    experiment = tmp_path / "long.toml"
    experiment.write_text(
        '[service]\nbase_url = "embedded"\nthreads = 1\n[model]\nbase = "nano"\n'
        '[data]\ntrain = "train.jsonl"\neval = "eval.jsonl"\n'
        '[train]\nmax_steps = 4000\nepochs = 4000\n[run]\nexecutor = "local"\n'
    )
    process = subprocess.Popen(
        [*COMMAND, "run", "long.toml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(after_s)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT), errors
    assert after_s < 1 or "Traceback" not in errors, errors
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_conclude_and_compare(folder: Path) -> None:
    found = crucible(folder, "conclude", "small")
    assert found.returncode == 0 and "n = 1: nothing can be said" in found.stdout
    assert "n = 1: nothing can be said" in crucible(folder, "status", "small").stdout
    as_json = json.loads(crucible(folder, "conclude", "small", "--json").stdout)
    assert as_json["kind"] == "nothing" and as_json["take"] is None
    rows = crucible(folder, "compare", "small", "1", "2")
    assert rows.returncode == 0 and "; 6 pairs of 6 examples, 1 shared seed\n" in rows.stdout
    assert "eval/nll of 1 less that of 2; effect size " in rows.stdout
    assert json.loads(crucible(folder, "compare", "small", "1", "2", "--json").stdout)["p"] < 1
    unknown = crucible(folder, "compare", "small", "1", "77")
    assert unknown.returncode == 2 and "no trial '77'" in unknown.stderr


def test_a_notebook_reads_the_sweep_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = crucible(folder, "report", "small", "--format", "notebook", "--out", "for me/papers")
    assert result.returncode == 0, result.stderr
    written = folder / result.stdout.strip()
    found = json.loads(written.read_text())
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in found["cells"]}) == len(found["cells"])
    monkeypatch.chdir(written.parent)  # where Jupyter runs it
    names: dict[str, Any] = {}
    shown = []
    for cell in found["cells"]:
        if cell["cell_type"] == "code":
            *body, last = ast.parse("".join(cell["source"])).body
            exec(compile(ast.Module(body, []), "cell", "exec"), names)
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
            else:
                exec(compile(ast.Module([last], []), "cell", "exec"), names)
    verdict = ct.open_sweep("small", storage=str(folder / "runs")).conclusion().verdict
    assert capsys.readouterr().out.strip() == verdict
    leaderboard, plots, trials = shown[-3:]
    assert (
        leaderboard
        == ct.open_sweep("small", storage=str(folder / "runs")).leaderboard().to_pylist()
    )
    assert plots._repr_html_().count("<svg") == len(trials) == 3
    assert {t["state"] for t in trials} == {"done"}


def test_a_report_in_latex(folder: Path) -> None:
    result = crucible(folder, "report", "small", "--format", "latex")
    assert result.returncode == 0, result.stderr
    text = (folder / result.stdout.strip()).read_text()
    assert r"\toprule" in text and r"\end{document}" in text
    refused = crucible(folder, "report", "small", "--format", "word")
    assert refused.returncode == 2 and "html, latex, notebook" in refused.stderr
