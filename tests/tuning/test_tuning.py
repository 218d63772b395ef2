"""`tune` on real parts: base `nano`, the embedded server, in this process."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import crucible_tinkex as ct
from crucible_tinkex.cli.app import app
from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import ConfigError, DataError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import SweepState
from crucible_tinkex.runtime.embedded import EmbeddedServer, Endpoint
from crucible_tinkex.sweep.preparing.experience import paces, speed
from crucible_tinkex.sweep.preparing.preparation import prepare
from crucible_tinkex.tuning.declaration import changed
from crucible_tinkex.tuning.tuning import DEFAULT_BASE, Wish, propose, told, where


def write_rows(path: Path, count: int = 40, start: int = 0) -> Path:
    numbers = [f"{i:03}" for i in range(start, start + count)]
    rows = [json.dumps({"prompt": f"{n}>", "completion": n[::-1]}) for n in numbers]
    path.write_text("\n".join(rows))
    return path


def test_a_data_file_in_an_adapter_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, storage = write_rows(tmp_path / "digits.jsonl"), tmp_path / "runs"
    told: list[str] = []
    wishes: dict[str, Any] = {"base": "nano", "budget": "60steps", "storage": storage}
    sweep = ct.tune(data, **wishes, explain=told.append)
    assert sweep.exit_code == 0
    assert any("held out" in line for line in told) and any("first" in line for line in told)
    assert (storage / "tune-digits" / "adapter" / "adapter_model.safetensors").stat().st_size > 0

    state = SweepState.read(sweep.paths)
    trials = [t for t in state.trials.values() if not t.reference]
    assert any(line.startswith("no guess: 'nano' is a toy") for line in told)
    assert trials[0].decisions[0].reason == "the next configuration of the search"
    assert state.spent.steps <= 60

    # The file that it wrote does the same: nothing is left to do, nothing is amended.
    file = storage / "tune-digits.toml"
    again = prepare(Experiment.from_toml(file))
    assert again.existing is not None and not again.amendments
    assert again.paths == sweep.paths

    # Called again it goes on, and trains nothing twice.
    told.clear()
    assert ct.tune(data, **wishes, explain=told.append).exit_code == 0
    assert [line for line in told if "goes on as" in line]
    assert SweepState.read(sweep.paths).spent == state.spent

    # Other data of the same name are refused, and nothing is touched.
    before = file.read_bytes()
    other = write_rows(tmp_path / "other.jsonl", start=100)
    with pytest.raises(ConfigError, match=r"another data\.train"):
        ct.tune(other, name="tune-digits", **wishes)
    write_rows(data, start=200)
    with pytest.raises(ConfigError, match="content of the data files"):
        ct.tune(data, **wishes)
    assert file.read_bytes() == before

    # What it learnt of this storage is used next time.
    assert speed(storage, "nano") == paces(storage, "nano")[0].tokens_per_s
    assert speed(storage, "another") is None


@pytest.mark.timeout(400)
def test_a_budget_that_ended_it_is_given_more(tmp_path: Path) -> None:
    data, storage = write_rows(tmp_path / "digits.jsonl"), tmp_path / "runs"
    wishes: dict[str, Any] = {"base": "nano", "storage": storage, "trials": 12}
    sweep = ct.tune(data, budget="12steps", **wishes)
    assert sweep.exit_code == 3
    first = SweepState.read(sweep.paths)
    assert first.ended_by == "budget"

    file = storage / "tune-digits.toml"
    file.write_text("# mine\n" + file.read_text())

    # `extend` gives more, and tune without a budget does not take it away.
    sweep.extend({"budget.steps": 14})  # a seed of both leaders, of a step each
    again = ct.tune(data, **wishes)
    assert again.exit_code == 3 and first.spent.steps < SweepState.read(sweep.paths).spent.steps
    assert Experiment.from_toml(file).budget.steps == 14

    # Another budget, of another kind, takes the place of the old one.
    told: list[str] = []
    more = ct.tune(data, budget="1h", **wishes, explain=told.append)
    assert more.exit_code == 0 and any("budget.hours = 1.0" in line for line in told)
    written = Experiment.from_toml(file)
    assert (written.budget.steps, written.budget.hours) == (None, 1.0)
    assert file.read_text().startswith("# mine\n# Made by `crucible tune`")
    assert not prepare(written).amendments, "the file does the same"
    assert list((storage / "tune-digits" / "adapter").glob("*.safetensors"))

    # What cannot be is refused, and the file stays.
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="no price"):
        write_prices = tmp_path / "none.toml"
        write_prices.write_text(f'date = {date.today()}\nsource = "x"\n[models]\n')
        ct.tune(data, budget="1usd", prices=write_prices, **wishes)
    assert file.read_bytes() == before


def test_a_greater_budget_pays_for_more_seeds(tmp_path: Path) -> None:
    """The small one's sweep is over within it: nothing would be left to do."""
    data, storage = write_rows(tmp_path / "digits.jsonl", 6), tmp_path / "runs"
    wishes: dict[str, Any] = {"base": "nano", "storage": storage}
    sweep = ct.tune(data, budget="7trials", **wishes)
    first = Experiment.from_toml(storage / "tune-digits.toml").search
    assert (first.trials, first.confirm) == (3, 1)
    assert "nothing can be said" in sweep.conclusion().verdict
    told: list[str] = []
    more = ct.tune(data, budget="26trials", **wishes, explain=told.append)
    written = Experiment.from_toml(storage / "tune-digits.toml").search
    assert (written.trials, written.confirm, written.confirm_max_seeds) == (13, "auto", 5)
    assert any("search.confirm = auto" in line for line in told)
    state = SweepState.read(more.paths)
    seeds = {t.seed for t in state.trials.values() if t.phase == "confirm"}
    assert len(seeds) >= 3 and len(state.trials) <= 26
    assert not prepare(Experiment.from_toml(storage / "tune-digits.toml")).amendments


def test_a_number_of_seeds_that_somebody_wrote_stays(tmp_path: Path) -> None:
    data, storage = write_rows(tmp_path / "digits.jsonl", 6), tmp_path / "runs"
    wish = Wish(str(data), base="nano", budget="20steps", storage=str(storage))
    propose(wish)
    file = storage / "tune-digits.toml"
    file.write_text(file.read_text().replace("confirm = 1", "confirm = 0"))
    ct.run(Experiment.from_toml(file))
    tuning = propose(replace(wish, budget="4000steps"))
    assert "confirm = 0" in file.read_text()
    assert tuning.prepared.amendments == ["budget.steps"]


FILE = """# mine
name = "s"  # the name
[search]
trials = 4   # few
[budget]  # hard
steps = 10
prices = "p.toml"
"""


def test_only_what_was_said_anew_changes_in_a_file() -> None:
    found = changed(FILE, {"budget.steps": None, "budget.hours": 2.0, "search.trials": 9})
    assert found == FILE.replace("trials = 4   # few", "trials = 9").replace(
        "steps = 10\n", ""
    ).replace("# hard\n", "# hard\nhours = 2.0\n")
    assert changed('name = "s"\n', {"budget.hours": 2.0}).endswith("\n[budget]\nhours = 2.0\n")
    assert changed(FILE, {}) == FILE and changed('name = "s"\n', {"budget.hours": None})
    with pytest.raises(ConfigError, match=r"set budget.hours = 2.0 .* yourself"):
        changed("budget = { steps = 10 }\n", {"budget.hours": 2.0})


@pytest.mark.parametrize(
    ("wish", "error", "match"),
    [
        ({"data": "missing.jsonl"}, DataError, "missing.jsonl"),
        ({"data": "broken.jsonl"}, DataError, "broken.jsonl"),
        ({"eval": "missing.jsonl"}, DataError, "missing.jsonl"),
        ({"budget": "a lot"}, ConfigError, "a lot"),
        ({"budget": "5usd", "prices": "missing.toml"}, ConfigError, "missing.toml"),
        ({"name": "../x"}, ConfigError, "name"),
        ({"out": "rows.jsonl"}, ConfigError, "is a file"),
        ({"out": "full"}, ConfigError, "not empty"),
        ({"service": "https://example.org"}, ConfigError, "needs --base"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wish: dict[str, str],
    error: type[Exception],
    match: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"prompt": 1')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    base = {} if "service" in wish else {"base": "nano"}
    with pytest.raises(error, match=match):
        propose(Wish(**{"data": "rows.jsonl", **base, **wish}))  # type: ignore[arg-type]
    assert not (tmp_path / "runs").exists()


def test_what_takes_a_while_is_said_before_and_one_server_answers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[str] = []
    began = EmbeddedServer.start

    async def start(server: EmbeddedServer) -> Endpoint:
        endpoint = await began(server)
        starts.append(endpoint.base_url)
        return endpoint

    monkeypatch.setattr(EmbeddedServer, "start", start)
    data = write_rows(tmp_path / "rows.jsonl", 6)
    heard: list[str] = []
    wish = Wish(str(data), base="nano", budget="1min", storage=str(tmp_path / "runs"))
    propose(wish, doing=heard.append)
    looks, times = heard
    assert "data" in looks and "5 steps" in times and "nano" in times
    propose(wish, doing=heard.append)
    assert len(heard) == 2, "nothing is looked at again"
    (address,) = starts
    with socket.socket() as port:
        assert port.connect_ex(("127.0.0.1", int(address.rsplit(":", 1)[1]))), "it has ended"


def test_a_sweep_that_tune_did_not_make_is_left_alone(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl")
    folder = SweepPaths.of(tmp_path / "runs", "mine").root
    folder.mkdir(parents=True)
    (folder / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="was not made by tune"):
        propose(Wish(str(data), base="nano", name="mine", storage=str(tmp_path / "runs")))


@pytest.mark.parametrize(
    ("base", "service", "environ", "found"),
    [
        (None, None, {}, (DEFAULT_BASE, "embedded")),
        (None, None, {"TINKER_API_KEY": "k"}, (DEFAULT_BASE, "embedded")),
        ("nano", None, {"TINKER_API_KEY": "k"}, ("nano", "embedded")),
        ("Qwen/Qwen3-8B", None, {"TINKER_API_KEY": "k"}, ("Qwen/Qwen3-8B", None)),
        ("Qwen/Qwen3-8B", None, {}, ("Qwen/Qwen3-8B", "embedded")),
        ("m", "https://example.org", {}, ("m", "https://example.org")),
        ("m", "embedded", {"TINKER_API_KEY": "k"}, ("m", "embedded")),
    ],
)
def test_where_it_trains(
    base: str | None, service: str | None, environ: dict[str, str], found: tuple[str, str | None]
) -> None:
    assert where(base, service, environ) == found


def test_hosted_because_of_a_key_is_said_with_the_way_out() -> None:
    hosted = told("Qwen/Qwen3-8B", None, {"TINKER_API_KEY": "k"})
    assert hosted == (
        "Qwen/Qwen3-8B on hosted Tinker, which is billed, as TINKER_API_KEY is set; "
        "--service embedded trains it on this machine"
    )
    elsewhere = {"TINKER_BASE_URL": "https://example.org", "CRUCIBLE_API_KEY_FILE": "key"}
    assert told("m", None, elsewhere).startswith(
        "m on https://example.org (TINKER_BASE_URL) as CRUCIBLE_API_KEY_FILE is set; "
    )
    assert told("nano", "embedded", {}) == "nano on the embedded server"
    assert told("m", "https://example.org", {}) == "m on https://example.org"


def test_hosted_is_said_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-k")
    monkeypatch.setenv("TINKER_BASE_URL", "https://no-such-service.invalid")
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    heard: list[str] = []

    class ToldError(Exception):
        pass

    def stop(line: str) -> None:
        heard.append(line)
        raise ToldError

    with pytest.raises(ToldError):
        propose(Wish(str(data), base="org/name", storage=str(tmp_path / "runs")), stop)
    assert "no-such-service.invalid (TINKER_BASE_URL) as TINKER_API_KEY is set" in heard[0]
    assert not (tmp_path / "runs").exists()


def test_init_writes_a_file_that_is_valid_and_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["init", "mine.toml"]).exit_code == 0
    written = (tmp_path / "mine.toml").read_text()
    assert "crucible plan mine.toml" in written
    write_rows(tmp_path / "train.jsonl")
    prepared = prepare(Experiment.from_toml(tmp_path / "mine.toml"))
    assert len(prepared.configurations) == 4 and prepared.policy().planned > 12
    assert prepared.notes and not prepared.warnings()
    again = CliRunner().invoke(app, ["init", "mine.toml"])
    assert isinstance(again.exception, ConfigError) and "not overwritten" in str(again.exception)
    assert (tmp_path / "mine.toml").read_text() == written


def test_what_the_template_comments_out_is_valid_too(tmp_path: Path) -> None:
    from crucible_tinkex.cli.sweeps.starting import TEMPLATE

    lines = []
    for line in TEMPLATE.splitlines():
        bare = line.removeprefix("# ")
        lines.append(bare if bare.startswith("[") or " = " in bare else "")
    (tmp_path / "all.toml").write_text("\n".join(lines))
    found = Experiment.from_toml(tmp_path / "all.toml")
    assert found.budget.hours == 1 and found.notify.command and found.search.space
