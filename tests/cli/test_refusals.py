"""What a sweep cannot be asked for: a clear message, exit code 2, and not one byte is changed."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest
from in_process import crucible
from nano_experiment import make_experiment

import crucible_tinkex as ct

RUN = ("run", "runs/small/experiment.toml", "--set")
EXTEND = ("extend", "small", "--set")
TABLE = 'date = {date}\nsource = "a page"\n[models.nano]\ntrain = 1\nprefill = 1\nsample = {sample}'


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder around a sweep that has ended."""
    folder = tmp_path_factory.mktemp("ended")
    assert ct.run(make_experiment(folder, steps=2)).exit_code == 0
    old = date.today() - timedelta(days=400)
    (folder / "old.toml").write_text(TABLE.format(date=old, sample=1))
    (folder / "malformed.toml").write_text(TABLE.format(date=date.today(), sample='"free"'))
    return folder


def prices(file: str) -> str:
    return f"budget={{dollars = 5, prices = '{file}'}}"


def test_ctrl_c_where_nobody_looks_after_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crucible_tinkex.tuning.tuning.look", interrupted)
    found = crucible("tune", "rows.jsonl", "--base", "nano")
    assert found.returncode == 130
    assert found.stderr.endswith("interrupted; run the same command to continue\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*RUN, "search.space.lora.alpha=[1.0, 2.0]"), "the Tinker API does not apply it"),
        ((*RUN, "search.space.lora.rank=[]"), "no values"),
        ((*RUN, "search.where=['lora.rank > 99']"), "excludes every point"),
        ((*EXTEND, "search.where=['lora.rank > 99']"), "excludes every point"),
        ((*RUN, "budget.steps=0"), "budget.steps"),
        ((*EXTEND, "budget.steps=0"), "budget.steps"),
        (("extend", "small", "--budget", "0usd"), "must be more than 0"),
        ((*RUN, prices("../../malformed.toml")), "needs sample"),
        ((*RUN, prices("../../old.toml")), "more than a year old"),
        ((*EXTEND, prices("old.toml")), "more than a year old"),
        (("clone", "small", "99", "--set", "optimizer.learning_rate=1e-4"), "no trial '99'"),
        (("clone", "small", "1"), "nothing is changed"),
        ((*EXTEND, "model.base=smollm2-135m-instruct"), "changed: model.base"),
        ((*RUN, "train.max_length=64"), "changed: train.max_length"),
        ((*EXTEND, "search.space.lora.rnk=[1]"), "unknown axis"),
        (("extend", "small"), "say what to ask for, as --set search.seeds=[0,1,2]"),
        (("extend", "small"), "or --budget 2h"),
        (("retry", "small", "1"), "did not fail"),
        (("stop", "small"), "nothing was changed"),
        (("stop", "small", "1"), "nothing was changed"),
        (("pause", "small"), "nothing was changed"),
        (("unpause", "small", "1"), "nothing was changed"),
        (("stop", "other"), "no sweep 'other'"),
    ],
)
def test_it_is_refused_and_nothing_is_changed(
    ended: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = {p: p.read_bytes() for p in ended.rglob("*") if p.is_file()}
    storage = () if arguments[0] == "run" else ("--storage", "runs")
    result = crucible(*arguments, *storage, folder=ended)
    assert result.returncode == 2, (result.stdout, result.stderr)
    assert result.stderr.startswith("error: ") and said in result.stderr
    assert {p: p.read_bytes() for p in ended.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("command", [("watch", "small", "--page"), ("tb", "small"), ("serve",)])
@pytest.mark.parametrize(("port", "said"), [("99999", "to 65535"), ("-1", "to 0")])
def test_a_port_that_no_machine_has_is_refused(
    ended: Path, command: tuple[str, ...], port: str, said: str
) -> None:
    result = crucible(*command, "--port", port, folder=ended)
    assert result.returncode == 2 and said in result.stderr and "--port" in result.stderr


def test_where_nothing_is_that_is_said(tmp_path: Path) -> None:
    assert crucible("list", folder=tmp_path).stdout == "no sweeps in runs\n"
    assert crucible("list", "--json", folder=tmp_path).stdout == "[]\n"
    assert crucible("models", "list", folder=tmp_path).stdout == "no such models are registered\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("list", "--json"),
        ("models", "list"),
        ("models", "find", "eval/nll"),
        ("models", "export"),
    ],
)
def test_a_storage_folder_that_is_not_there_is_said(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    result = crucible(*arguments, "--storage", "rnus", folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: --storage rnus: there is no such local or shared folder\n"
    (tmp_path / "rnus").mkdir()
    assert crucible(*arguments, "--storage", "rnus", folder=tmp_path).returncode == 0


@pytest.mark.parametrize("command", ["status", "resume"])
def test_of_a_sweep_that_is_not_there_the_listing_is_of_its_folder(
    tmp_path: Path, command: str
) -> None:
    def said() -> str:
        found = crucible(command, "small", "--storage", "my runs", folder=tmp_path)
        assert found.returncode == 2
        return found.stderr

    folder = (tmp_path / "my runs").resolve()
    assert f"there is no folder {folder}; --storage names one" in said()
    folder.mkdir()
    assert f"`crucible list --storage '{folder}'` shows them" in said()
