"""Writes docs/protocol.md: which endpoints each official SDK used against our server, as measured.

    python tests/server/protocol_table.py

It runs `sdk_flow.py` with every SDK against a real server and reads the server's log. The tests
compare what they see with the table, so that it cannot go stale unseen.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from sdk_server import OLD_VERSIONS, absent, broken, run_flow, sdk_python, served

TABLE = Path(__file__).parents[2] / "docs" / "protocol.md"
BY_TIME = {"POST session_heartbeat"}
"""Routes that a short flow may not reach."""
_HEAD = """# The Tinker protocol as our server speaks it

Written by `tests/server/protocol_table.py`; do not edit. Each official SDK, unmodified, ran the
whole flow of `tests/server/sdk_flow.py` against a real server process. The table lists every route
under `/api/v1` that an SDK asked for, and the statuses that it got. 408 on `retrieve_future` means
"ask again"; 4xx elsewhere are requests that the flow makes wrong on purpose.

"""


def column(text: str, sdk: str) -> set[str]:
    """The routes that the table marks for this SDK."""
    rows = [[c.strip() for c in r.strip("|").split("|")] for r in text.splitlines() if r[:1] == "|"]
    if not rows or sdk not in rows[0]:
        return set()
    place = rows[0].index(sdk)
    return {r[0].strip("`") for r in rows[2:] if len(r) > place and r[place] not in ("", "-")}


def observe(sdk: str, python: Path) -> tuple[dict[str, set[int]], dict[str, str]]:
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as server:
        steps = run_flow(python, server, Path(name), idle_s=12)["steps"]
        assert not broken(steps), (sdk, broken(steps))
        return server.routes(), steps


def main() -> None:
    present = version("tinker")
    pythons = {present: Path(sys.executable), **{v: sdk_python(v) for v in OLD_VERSIONS}}
    seen = {sdk: observe(sdk, python) for sdk, python in pythons.items()}
    routes = sorted({r for found, _ in seen.values() for r in found}, key=lambda r: r.split()[::-1])
    lines = [f"| route | {' | '.join(seen)} |", f"|---|{'---|' * len(seen)}"]
    for route in routes:
        cells = [_cell(found.get(route, set())) for found, _ in seen.values()]
        lines.append(f"| `{route}` | {' | '.join(cells)} |")
    lines += [
        "",
        "Steps of the flow that a version does not offer, or that need torch:",
        "",
    ]
    for sdk, (_, steps) in seen.items():
        passed = sum(found == "ok" for found in steps.values())
        missing = ", ".join(sorted(absent(steps))) or "none"
        lines.append(f"- {sdk}: {passed} of {len(steps)} steps passed; absent: {missing}.")
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(_HEAD + "\n".join(lines) + "\n")


def _cell(statuses: set[int]) -> str:
    return ", ".join(map(str, sorted(statuses))) or "-"


if __name__ == "__main__":
    main()
