"""The leaderboard and the verdict as Markdown, to paste where people talk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from crucible_tinkex.scoring.quality import Assessment
from crucible_tinkex.sweep.results.leaderboard import Objective

MOST_ROWS = 50
_STANDING = {"best": "best", "not separable": "≈ best", "worse": "worse"}


def markdown(data: Mapping[str, Any]) -> str:
    """One sweep (`report_data`)."""
    notes = [f"- {note}" for note in data["conclusion"]["notes"]]
    lines = [f"# {data['name']}", "", data["verdict"], "", *notes, *([""] if notes else [])]
    head = heads(data)
    lines += [_row(head), _row(["---"] * len(head)), *map(_row, rows(data))]
    if (left := len(data["configurations"]) - MOST_ROWS) > 0:
        lines += ["", f"and {left} more"]
    for title, texts in lists(data):
        lines += ["", f"## {title}", "", *(f"- {text}" for text in texts)]
    return "\n".join([*lines, ""])


def heads(data: Mapping[str, Any]) -> list[str]:
    """Of the leaderboard's columns."""
    metric = data["metric"]
    of = Objective(metric["name"], metric["direction"], metric["at"])
    return ["#", *(a["name"] for a in data["axes"]), str(of), "n", "verdict", "state"]


def rows(data: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Of the leaderboard, the first `MOST_ROWS`: a cell for each of `heads`."""
    for found in data["configurations"][:MOST_ROWS]:
        unset = "untrained" if found["reference"] else ""
        settings = [found["values"].get(a["key"], unset) for a in data["axes"]]
        numbers = [measured(found), found["n"], _STANDING.get(found.get("standing"), "-")]
        place = f"{found['place'] or '-'}{'=' if found['shared'] else ''}"
        yield [place, *settings, *numbers, found["state"]]


def lists(data: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """What follows the leaderboard, by title: targets, and trials that stopped or failed."""
    if data["quality"]:
        yield "Quality targets", [str(Assessment(**t)) for t in data["quality"]["targets"]]
    for title, faults in (("Stopped early", data["stopped"]), ("Failed or lost", data["failures"])):
        if faults:
            first = faults[:MOST_ROWS]
            yield title, [f"{f['trial']} at step {f['step']}: {f['why']}" for f in first]


def measured(found: Mapping[str, Any]) -> str:
    """`1.2345 ± 0.0012`, the 95 % interval over the seeds, as far as it is known."""
    if found["mean"] is None:
        return "-"
    interval = "" if found["half_width"] is None else f" ± {found['half_width']:.4f}"
    return f"{found['mean']:.4f}{interval}"


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"
