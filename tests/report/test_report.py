"""The page of a sweep: what it says, how large it is, that nothing in it can break out."""

from __future__ import annotations

import csv
import json
import re
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import BROWSER, drawn
from states import folded

from crucible_tinkex.errors import ConfigError, StorageError
from crucible_tinkex.registry import DONE
from crucible_tinkex.report.data import report_data
from crucible_tinkex.report.importance import importance
from crucible_tinkex.report.live import page_server
from crucible_tinkex.report.markdown import markdown
from crucible_tinkex.report.page import page, script_json
from crucible_tinkex.report.writing import write_report
from crucible_tinkex.scoring.quality import assess


def shown(folder: Path, **options: int) -> dict[str, object]:
    return {**report_data(*folded(folder, **options)), "verdict": "rank 8 <b>wins</b>"}


def test_the_data_says_what_the_journal_says(tmp_path: Path) -> None:
    data = report_data(*folded(tmp_path))
    first = data["configurations"][0]
    assert first["values"] == {"lora.rank": 8, "optimizer.learning_rate": 0.01}
    assert first["place"] == 1 and first["n"] == 2 and first["complete"]
    assert first["mean"] == pytest.approx(1.0 + 0.0125 + 0.005 + 1 / 6)
    assert data["axes"][0]["key"] == "optimizer.learning_rate"  # explains the most
    assert [f["trial"] for f in data["failures"]] == ["run </script> 11"]
    assert len(data["stopped"]) == 4 and data["stopped"][0]["why"] == "place 6 of 6"
    assert data["spent"]["train_tokens"] == 12 * 100
    steps, values = data["curves"]["eval/nll"][first["trials"][0]]
    assert steps == [1, 2, 3, 4, 5, 6] and values == sorted(values, reverse=True)
    assert data["conclusion"]["kind"] == "open" and data["verdict"].startswith(
        "not enough evidence"
    )
    incomplete = [c for c in data["configurations"] if not c["complete"]]
    assert incomplete and all(c["place"] is None for c in incomplete)


def tie(folder: Path) -> dict[str, Any]:
    """A sweep's data in which the first two of its configurations have the same mean."""
    state, paths = folded(folder, seeds=(0,))
    first, second = list(state.trials.values())[1:3]  # the one before was stopped
    for trial in (first, second):
        trial.state, trial.step = DONE, 6
        trial.results = {6: {"eval/nll": 1.0}}
        trial.metrics, trial.metrics_step = {"eval/nll": 1.0}, 6
    return report_data(state, paths)


def test_ties_share_a_place_as_in_the_terminal(tmp_path: Path) -> None:
    data = tie(tmp_path)
    found = [(c["place"], c["shared"]) for c in data["configurations"] if c["complete"]]
    assert found == [(1, True), (1, True), (3, False)]
    assert markdown(data).count("| 1= |") == 2 and "| 3 |" in markdown(data)


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
def test_a_browser_draws_ties(tmp_path: Path) -> None:
    dom = drawn(write_report([tie(tmp_path)], tmp_path / "out"), tmp_path)
    assert dom.count(">1=<") == 2 and ">3<" in dom


def test_importance_is_the_share_that_a_setting_explains() -> None:
    rows = [{"a": a, "b": b} for a in (1, 2) for b in (1, 2)]
    assert importance(rows, [1.0, 1.0, 2.0, 2.0]) == {"a": 1.0, "b": 0.0}
    assert importance(rows, [3.0] * 4) == {"a": 0.0, "b": 0.0}
    assert importance([], []) == {}


def test_a_setting_with_a_value_of_its_own_everywhere_does_not_explain_all() -> None:
    rows = [{"lr": float(i)} for i in range(16)]
    noise = [float(i * 7 % 16) for i in range(16)]
    assert importance(rows, noise)["lr"] < 0.5


def test_a_thousand_trials_stay_below_a_megabyte(tmp_path: Path) -> None:
    state, paths = folded(tmp_path, rates=250, steps=100)
    assert len(state.trials) == 1000
    assert len(page([report_data(state, paths)]).encode()) < 1_000_000


def test_an_empty_page_is_small(tmp_path: Path) -> None:
    assert len(page([shown(tmp_path)]).encode()) < 300 * 1024


def test_nothing_in_the_data_ends_its_script(tmp_path: Path) -> None:
    text = page([shown(tmp_path)])
    assert text.count("</script>") == 4  # the data's, and three of our own
    assert json.loads(script_json({"a": "</script>\u2028"})) == {"a": "</script>\u2028"}
    assert "http://" not in text.replace(
        "http://www.w3.org", ""
    ) and "https://" not in text.replace("https://github.com/leeoniya/uPlot", "")


def test_the_files_beside_the_page(tmp_path: Path) -> None:
    data = shown(tmp_path / "runs")
    written = write_report([data], tmp_path / "out")
    assert written == tmp_path / "out" / "index.html"
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["name"] == "s"
    rows = list(csv.DictReader((tmp_path / "out" / "leaderboard.csv").read_text().splitlines()))
    assert rows[0]["place"] == "1" and rows[0]["lora.rank"] == "8" and rows[-1]["place"] == ""
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| eval/nll (min, last step) |" in text
    assert "| 1 | 0.01 | 8 |" in text and "## Stopped early" in text and "## Failed or lost" in text


def test_targets_stand_in_the_markdown_too(tmp_path: Path) -> None:
    data = shown(tmp_path)
    assert "## Quality targets" not in markdown(data)
    target = assess("eval/pass_rate", 0.45, "max", value=0.5, low=0.4, high=0.6, n=90)
    data["quality"] = {"status": target.status, "targets": [target.to_dict()]}
    assert "- eval/pass_rate: at least 0.45: not settled (0.5, 0.4 to 0.6, 90 rows)" in markdown(
        data
    )


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_report([shown(tmp_path)], tmp_path / "file" / "report")


def test_what_stands_in_cells_cannot_break_the_markdown(tmp_path: Path) -> None:
    data = shown(tmp_path)
    data["axes"] = [{"key": "k", "name": "a|b\nc"}]
    assert "\n| # | a\\|b c |" in markdown(data)


def test_a_live_page_follows(tmp_path: Path) -> None:
    asked = []

    def data() -> list[dict[str, object]]:
        asked.append(1)
        return [shown(tmp_path)]

    server = page_server(data, port=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        with httpx.Client(base_url=address, trust_env=False) as client:
            assert '"live":true' in client.get("/").text
            assert client.get("/data.json").json()["sweeps"][0]["name"] == "s"
            assert client.get("/other").status_code == 404
            assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
        assert len(asked) == 1  # the second answer was fresh enough
        with pytest.raises(ConfigError, match="--port 0"):
            page_server(data, port=server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_draws_it(tmp_path: Path, width: int) -> None:
    written = write_report([shown(tmp_path / "runs")], tmp_path / "out")
    dom = drawn(written, tmp_path, width=width)
    assert "rank 8 &lt;b&gt;wins&lt;/b&gt;" in dom  # as text
    assert dom.count("<canvas") == 1 and 'aria-label="map of two settings"' in dom
    assert 'class="tag stopped"' in dom and "explains" in dom and "Failed or lost (1)" in dom


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
def test_the_page_names_the_storage_and_marks_who_was_placed_first(tmp_path: Path) -> None:
    """In the map, too, and not whoever has the best mean, of other seeds."""
    data = report_data(*folded(tmp_path / "st\u00f6 re"))
    first, second = data["configurations"][:2]
    second["mean"] = first["mean"] - 0.125
    data["placed_by_shared_seeds"] = True
    dom = drawn(write_report([data], tmp_path / "out"), tmp_path)
    assert f"crucible query s --storage '{tmp_path}/st\u00f6 re' &quot;SELECT" in dom
    assert "that both have run.</p>" in dom
    assert re.findall(r'font-weight="700">([^<]*)<', dom) == [f"{first['mean']:.4g}"]


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
def test_what_settles_it_is_offered_where_the_data_say_so(tmp_path: Path) -> None:
    data = report_data(*folded(tmp_path))
    for command in (None, "crucible extend s --set search.confirm=auto"):
        dom = drawn(write_report([{**data, "surer": command}], tmp_path / "out"), tmp_path)
        assert ("To settle it: <code>" in dom) is bool(command)
        assert command is None or f"<code>{command}</code>" in dom
