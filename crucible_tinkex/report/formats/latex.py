"""The report as a LaTeX document with booktabs tables, which can be taken over one by one.

Everything that comes from a sweep is escaped: the original left underscores alone, and its tables
did not compile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crucible_tinkex.report.markdown import MOST_ROWS, heads, lists, rows

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
    for title, texts in lists(data):
        lines += ["", rf"\subsection*{{{title}}}", r"\begin{itemize}"]
        lines += [*(rf"\item {escaped(text)}" for text in texts), r"\end{itemize}"]
    return [*lines, "", rf"Run again: \texttt{{{escaped(data['reproduce']['command'])}}}"]


def _leaderboard(data: Mapping[str, Any]) -> list[str]:
    columns = f"r{'l' * len(data['axes'])}rrll"
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _row(heads(data)), r"\midrule"]
    lines += [*map(_row, rows(data)), r"\bottomrule", r"\end{tabular}"]
    left = len(data["configurations"]) - MOST_ROWS
    return [*lines, "", f"and {left} more"] if left > 0 else lines


def _row(cells: Sequence[Any]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"
