"""The page without a mouse, in a real browser: where Tab leads, what Enter, Space and arrows do,
and that the focus survives what they change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import BROWSER, Browser, Tab
from states import folded

from crucible_tinkex.report.data import report_data
from crucible_tinkex.report.live import page_server
from crucible_tinkex.report.writing import write_report
from crucible_tinkex.scoring.quality import assess

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
TARGETS = (
    assess("eval/accuracy", 0.9, "max", value=0.97, low=0.95, high=0.99, n=400),
    assess("eval/bpb", 1.0, "min", value=1.5, low=1.4, high=1.6, n=400),
    assess("eval/nll", 1.2, "min", value=1.18, low=1.1, high=1.26, n=60, min_n=100),
    assess("eval/pass_rate", 0.45, "max"),
)


def swept(folder: Path) -> dict[str, Any]:
    data = report_data(*folded(folder))
    targets = [target.to_dict() for target in TARGETS]
    return {**data, "quality": {"status": "missed", "required": True, "targets": targets}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_report([swept(folder / "runs")], folder / "out")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def tab(folder: Path, browser: Browser) -> Tab:
    return Tab(browser, (folder / "out" / "index.html").as_uri())


def of_all(tab: Tab, selector: str, script: str, inside: str = "document") -> Any:
    """`script` of every element `e`."""
    return tab.value(f"[...{inside}.querySelectorAll('{selector}')].map(e => {script})")


def rows(tab: Tab) -> list[str]:
    return [str(row) for row in of_all(tab, "table[role=grid] tbody tr", "e.innerText")]


def walk(tab: Tab, most: int = 60) -> list[str]:
    """What Tab reaches from the top of the page, in order."""
    seen: list[str] = []
    for _ in range(most):
        tab.press("Tab")
        if tab.value("document.activeElement === document.body"):
            break
        seen.append(tab.focused)
    return seen


def test_tab_passes_through_all_sections_in_order(tab: Tab) -> None:
    seen = walk(tab)
    wanted = ["copy SQL", "sort place", "row t0008", "curve", "curves", "axis lr", "map 0"]
    wanted += ["summary Stopped early, and why", "summary Failed or lost", "copy copy"]
    places = [[s.startswith(w) for s in seen].index(True) for w in wanted]
    assert places == sorted(places), seen
    assert sum(s.startswith("row ") for s in seen) == 1, "the table is one stop"
    assert len(seen) == len(set(seen)), "nothing is a trap"


def test_arrows_move_in_the_table_and_enter_chooses_and_keeps_the_focus(tab: Tab) -> None:
    tab.value("document.querySelector('tr[tabindex=\"0\"]').focus()")
    tab.press("ArrowDown", "Enter")
    second = "document.querySelectorAll('table[role=grid] tbody tr')[1]"
    assert tab.value(f"document.activeElement === {second}"), "drawn anew, and still there"
    assert tab.value(f"{second}.getAttribute('aria-selected')") == "true"
    tab.press(" ")
    assert tab.value(f"{second}.getAttribute('aria-selected')") == "false"
    tab.press("End", "ArrowUp", "Home")
    assert tab.value("document.activeElement.rowIndex") == 1
    tab.press("Tab")
    assert tab.focused.startswith("copy SQL")
    assert tab.value("document.activeElement.closest('tr').rowIndex") == 1, "of this row"


def test_a_column_sorts_by_key_and_keeps_the_focus(tab: Tab) -> None:
    before = rows(tab)
    tab.value("document.querySelector('[data-key=\"sort mean\"]').focus()")
    tab.press("Enter", "Enter")
    assert tab.focused == "sort mean" and rows(tab)[0] != before[0]
    assert (
        tab.value("document.activeElement.closest('th').getAttribute('aria-sort')") == "descending"
    )


def test_a_query_is_copied_by_enter_and_chooses_nothing(tab: Tab) -> None:
    tab.value("navigator.clipboard.writeText = text => (window.told = text, Promise.resolve())")
    tab.value("document.querySelector('tr[tabindex=\"0\"] button.copy').focus()")
    tab.press("Enter")
    assert "WHERE trial_id IN ('t0008'" in tab.value("window.told")
    assert tab.value("document.activeElement.textContent") == "copied"
    assert tab.value("document.querySelector('tr.chosen')") is None


def test_without_a_clipboard_the_text_lies_ready_to_be_copied(tab: Tab) -> None:
    tab.value("navigator.clipboard.writeText = () => Promise.reject(new Error('denied'))")
    tab.value("[...document.querySelectorAll('button.copy')].pop().focus()")
    tab.press(" ")
    copied = tab.value("getSelection().toString()")
    assert copied.startswith("crucible run ") and copied.endswith("runs/s/experiment.toml")
    assert tab.value("document.activeElement.tagName") == "INPUT"


def test_details_open_and_stay_as_they_are(tab: Tab) -> None:
    tab.value("document.querySelector('summary').focus()")
    first = "document.querySelector('details').open"
    assert tab.value(first) is True, "so few are shown"
    tab.press("Enter")
    assert tab.value(first) is False
    tab.value("document.querySelector('[data-key=\"sort n\"]').click()")
    assert tab.value(first) is False, "also when everything is drawn anew"
    tab.press(" ")
    assert tab.value(first) is True, "and the focus is still on it"


def test_the_curves_tell_their_values_by_key(tab: Tab) -> None:
    tab.value("document.querySelector('.plot').focus()")
    readout = "document.querySelector('p[role=status]').textContent"
    legend = "[...document.querySelectorAll('.legend b')].map(b => b.textContent)"
    assert tab.value(readout) == ""
    tab.press("Home")
    assert tab.value(readout).startswith("step 1: lr 0.01, rank 8 2.0")
    tab.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert tab.value(readout).startswith("step 2: ")
    tab.press("End")
    values = tab.value(legend)
    assert tab.value(readout).startswith("step 6: ") and values[0] == "1.184 (1.179 to 1.189)"
    assert values[-1] == "", "that one was stopped before"


def test_a_pointer_reads_the_curves_too(tab: Tab) -> None:
    plot = "document.querySelector('.u-over')"
    tab.value(f"{plot}.scrollIntoView({{block: 'center'}})")
    box = tab.value(f"{plot}.getBoundingClientRect().toJSON()")
    for back in (40, 2):
        x, y = box["right"] - back, box["y"] + 50
        tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    tab.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert tab.value("document.querySelector('p[role=status]').textContent").startswith("step 6: ")


def test_an_axis_filters_by_arrow_keys_again_and_again(tab: Tab) -> None:
    tab.value("document.querySelector('[data-key=\"axis lr\"]').focus()")
    tab.press(*["ArrowUp"] * 4)
    assert tab.focused == "axis lr"
    assert (
        tab.value("document.activeElement.getAttribute('aria-valuetext')")
        == "40 to 100 % of its range"
    )
    assert tab.value("document.querySelectorAll('tr.faded').length") == 2, "lr .001"
    tab.press("Escape")
    assert tab.value("document.querySelectorAll('tr.faded').length") == 0


def test_targets_say_what_is_met_missed_and_not_known(tab: Tab) -> None:
    found = of_all(tab, ".targets tbody tr", "[...e.cells].map(c => c.innerText)")
    met, missed, unsettled, unmeasured = found
    assert met == ["eval/accuracy", "✓ met", "≥ 0.9", "0.97 (0.95 to 0.99)", "400", ""]
    assert missed[:3] == ["eval/bpb", "✗ missed", "≤ 1"]
    assert unsettled[1] == "? not settled" and unsettled[4] == "60, 100 are asked for"
    assert unmeasured[1].endswith("unmeasured") and unmeasured[2:4] == ["≥ 0.45", "not measured"]
    drawn = of_all(tab, ".targets svg", "e.querySelectorAll('.value').length")
    assert drawn == [2, 2, 2, 0], "an interval and a dot"
    assert all(float(w) > 0 for w in of_all(tab, ".targets rect", "e.getAttribute('width')"))


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_screen(folder: Path, browser: Browser, width: int) -> None:
    tab = Tab(browser, (folder / "out" / "index.html").as_uri(), width=width)
    assert tab.value("document.documentElement.scrollWidth") <= width


def test_curves_that_make_the_page_scroll_leave_room_for_the_bar(
    folder: Path, browser: Browser
) -> None:
    page, height = (folder / "out" / "index.html").as_uri(), "document.documentElement.scrollHeight"
    needed = int(Tab(browser, page, width=390, mobile=False).value(height))
    tab = Tab(browser, page, width=390, height=needed - 100, mobile=False)
    told = "[document.documentElement.clientWidth, document.documentElement.scrollWidth]"
    visible, drawn = tab.value(told)
    assert drawn <= visible < 390


def test_a_live_page_that_draws_itself_anew_leaves_the_reader_alone(
    tmp_path: Path, browser: Browser
) -> None:
    data = swept(tmp_path / "runs")
    server = page_server(lambda: [data], port=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        tab = Tab(browser, f"http://127.0.0.1:{server.server_port}/")
        tab.value("document.querySelector('details').open = false")
        tab.value("document.querySelector('tr[tabindex=\"0\"]').focus()")
        tab.press("ArrowDown")
        tab.value("show(DATA.sweeps)")
        assert tab.focused.startswith("row ")
        assert tab.value("document.activeElement.rowIndex") == 2
        assert tab.value("document.querySelector('details').open") is False
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_several_sweeps_have_their_own_sections_and_places(
    tmp_path: Path, browser: Browser
) -> None:
    first = swept(tmp_path / "runs")
    second = {**report_data(*folded(tmp_path / "more", rates=2)), "name": "other one"}
    tab = Tab(browser, write_report([first, second], tmp_path / "out").as_uri())
    tab.press("Tab", "Tab", "Enter")
    assert tab.value("decodeURIComponent(location.hash)") == "#sweep-other one"
    assert of_all(tab, "section", "e.querySelectorAll('tr[tabindex=\"0\"]').length") == [1, 1]
    assert of_all(tab, "section", "e.querySelectorAll('.targets').length") == [1, 0]
    tab.value("document.querySelectorAll('section')[1].querySelector('tr[tabindex]').focus()")
    tab.press("Enter")
    assert of_all(tab, "section", "e.querySelectorAll('tr.chosen').length") == [0, 1]
