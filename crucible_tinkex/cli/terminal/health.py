"""What `crucible doctor` found, line by line while it looks, or as JSON."""

from __future__ import annotations

import contextlib
import json as json_module
import sys
from collections.abc import Iterable
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crucible_tinkex.cli.terminal.tables import print_table
from crucible_tinkex.doctor import Check, Finding, looked

STYLES = {"ok": "green", "note": "yellow", "failed": "red"}
NAME_WIDTH = 20


def show_health(checks: Iterable[Check], *, json: bool) -> int:
    """The exit code: that of the first check that failed, 0 if none did."""
    found = []
    for check in checks:
        # Ray's own messages belong to stderr
        with Console(stderr=True).status(check.name), contextlib.redirect_stdout(sys.stderr):
            found.append(looked(check))
        if not json:
            _show(found[-1])
    if json:
        print(json_module.dumps([asdict(finding) for finding in found]))
    return next((f.exit_code for f in found if f.state == "failed"), 0)


def _show(finding: Finding) -> None:
    line = Table.grid(padding=(0, 2, 0, 0))
    for width in (len("failed"), NAME_WIDTH, None):
        line.add_column(width=width)
    line.add_row(Text(finding.state, STYLES[finding.state]), Text(finding.name), Text(finding.says))
    print_table(line)
