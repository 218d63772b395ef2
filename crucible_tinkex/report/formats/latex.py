"""The report as a LaTeX document with booktabs tables, which can be taken over one by one.

Everything that comes from a sweep is escaped: the original left underscores alone, and its tables
did not compile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crucible_tinkex.report.markdown import MOST_ROWS, STANDING, measured
from crucible_tinkex.scoring.quality import Assessment
from crucible_tinkex.sweep.results.leaderboard import Objective

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "-": "{-}",  # two are a dash, also in a command line
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "\u00d7": r"$\times$",
}
_HEAD = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{booktabs,textcomp}
\begin{document}"""
_END = "\\end{document}\n"


def latex(sweeps: Sequence[Mapping[str, Any]]) -> str:
    """One document of several sweeps (`report_data`)."""
    return "\n".join([_HEAD, *(line for sweep in sweeps for line in _sweep(sweep)), _END])


def escaped(text: Any) -> str:
    """What LaTeX prints as the text. Other letters than ASCII are left to `inputenc`; what is no
    character to print becomes a space."""
    return "".join(_SPECIAL.get(c, c if c.isprintable() else " ") for c in str(text))


def _sweep(data: Mapping[str, Any]) -> list[str]:
    notes = [f"{data['verdict']}.", *(f"{note}." for note in data["conclusion"]["notes"])]
    lines = ["", rf"\section*{{{escaped(data['name'])}}}", *map(escaped, notes), ""]
    lines += _leaderboard(data)
    if data["quality"]:
        lines += ["", r"\subsection*{Quality targets}"]
        lines += _items(str(Assessment(**target)) for target in data["quality"]["targets"])
    for title, faults in (("Stopped early", data["stopped"]), ("Failed or lost", data["failures"])):
        if faults:
            lines += ["", rf"\subsection*{{{title}}}"]
            lines += _items(f"{f['trial']} at step {f['step']}: {f['why']}" for f in faults)
    return [*lines, "", rf"Run again: \texttt{{{escaped(data['reproduce']['command'])}}}"]


def _leaderboard(data: Mapping[str, Any]) -> list[str]:
    metric, axes = data["metric"], data["axes"]
    of = Objective(metric["name"], metric["direction"], metric["at"])
    heads = [r"\#", *(escaped(a["name"]) for a in axes), escaped(of), "n", "verdict", "state"]
    lines = [rf"\begin{{tabular}}{{r{'l' * len(axes)}rrll}}", r"\toprule", _row(heads), r"\midrule"]
    for found in data["configurations"][:MOST_ROWS]:
        unset = "untrained" if found["reference"] else ""
        settings = [found["values"].get(a["key"], unset) for a in axes]
        standing = STANDING.get(found.get("standing"), "-")
        cells = [found["place"] or "-", *settings, measured(found), found["n"], standing]
        lines.append(_row([escaped(cell) for cell in (*cells, found["state"])]))
    lines += [r"\bottomrule", r"\end{tabular}"]
    left = len(data["configurations"]) - MOST_ROWS
    return [*lines, "", f"and {left} more"] if left > 0 else lines


def _items(texts: Any) -> list[str]:
    items = [rf"\item {escaped(text)}" for text in texts]
    return [r"\begin{itemize}", *items[:MOST_ROWS], r"\end{itemize}"]


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
