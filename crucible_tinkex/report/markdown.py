"""The leaderboard and the verdict as Markdown, to paste where people talk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crucible_tinkex.scoring.quality import Assessment
from crucible_tinkex.sweep.results.leaderboard import Objective

MOST_ROWS = 50
STANDING = {"best": "best", "not separable": "≈ best", "worse": "worse"}


def markdown(data: Mapping[str, Any]) -> str:
    """One sweep (`report_data`)."""
    metric = data["metric"]
    axes = data["axes"]
    heads = [
        "#",
        *(a["name"] for a in axes),
        str(Objective(metric["name"], metric["direction"], metric["at"])),
        "n",
        "verdict",
        "state",
    ]
    notes = [f"- {note}" for note in data["conclusion"]["notes"]]
    lines = [f"# {data['name']}", "", data["verdict"], "", *notes, *([""] if notes else [])]
    lines.append(_row(heads))
    lines.append(_row(["---"] * len(heads)))
    for found in data["configurations"][:MOST_ROWS]:
        settings = [
            found["values"].get(a["key"], "untrained" if found["reference"] else "") for a in axes
        ]
        numbers = [measured(found), found["n"], STANDING.get(found.get("standing"), "-")]
        cells = [found["place"] or "-", *settings, *numbers, found["state"]]
        lines.append(_row(cells))
    left = len(data["configurations"]) - MOST_ROWS
    if left > 0:
        lines += ["", f"and {left} more"]
    if data["quality"]:
        lines += ["", "## Quality targets", ""]
        lines += [f"- {Assessment(**target)}" for target in data["quality"]["targets"]]
    for title, faults in (("Stopped early", data["stopped"]), ("Failed or lost", data["failures"])):
        if faults:
            lines += ["", f"## {title}", ""]
            lines += [f"- {f['trial']} at step {f['step']}: {f['why']}" for f in faults[:MOST_ROWS]]
    return "\n".join([*lines, ""])


def measured(found: Mapping[str, Any]) -> str:
    """`1.2345 ± 0.0012`, the 95 % interval over the seeds, as far as it is known."""
    if found["mean"] is None:
        return "-"
    interval = "" if found["half_width"] is None else f" ± {found['half_width']:.4f}"
    return f"{found['mean']:.4f}{interval}"


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"
