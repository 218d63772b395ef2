"""Writes docs/protocol.md: which endpoints each client used against our server, as measured.

    python tests/server/protocol_table.py

It runs `sdk_flow.py` with every SDK, and `client_flow.py` with our own client, against a real
server and reads the server's log. What the server has is read off its own table of routes. The
tests compare what they see with the table, so that it cannot go stale unseen.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from client_flow import NAME
from sdk_server import CLIENT_FLOW, FLOW, OLD_VERSIONS, absent, broken, run_flow, sdk_python, served

from crucible_tinkex.server.operations import BaseInfo, Operation, Outcome
from crucible_tinkex.server.store.store import Store
from crucible_tinkex.server.web.app import App

SERVER = "our server"
TABLE = Path(__file__).parents[2] / "docs" / "protocol.md"
BY_TIME = {"POST session_heartbeat", "POST telemetry", "POST cancel_future"}
"""Routes that a short flow may not reach."""
_HEAD = """# The Tinker protocol as our server speaks it

Written by `tests/server/protocol_table.py`; do not edit. Each official SDK, unmodified, ran the
whole flow of `tests/server/sdk_flow.py` against a real server process; our own client ran that of
`tests/server/client_flow.py`: training, sampling, saving, loading, listing, deleting, downloading.
The table lists every route under `/api/v1` that our server has, and the statuses that each client
got; - where it did not ask. Any other route answers 404. 408 on `retrieve_future` means "ask
again"; 4xx elsewhere are requests that the flow makes wrong on purpose.

"""


def column(text: str, sdk: str) -> dict[str, str]:
    """The routes that the table marks for this client, and the statuses."""
    rows = [[c.strip() for c in r.strip("|").split("|")] for r in text.splitlines() if r[:1] == "|"]
    if not rows or sdk not in rows[0]:
        return {}
    place = rows[0].index(sdk)
    return {
        r[0].strip("`"): r[place] for r in rows[2:] if len(r) > place and r[place] not in ("", "-")
    }


def cells(routes: dict[str, set[int]]) -> dict[str, str]:
    """As `column` reads them."""
    return {route: ", ".join(map(str, sorted(statuses))) for route, statuses in routes.items()}


def observe(sdk: str, python: Path, flow: Path = FLOW) -> tuple[dict[str, str], dict[str, str]]:
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as server:
        steps = run_flow(python, server, Path(name), flow=flow, idle_s=12)["steps"]
        assert not broken(steps), (sdk, broken(steps))
        return cells(server.routes()), steps


class NoEngine:
    """Enough of an `Engine` to make an `App`, which is never asked."""

    base = BaseInfo("none", "none", 1, 1)

    def submit(self, operation: Operation, done: Callable[[Outcome], None]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def server_routes() -> frozenset[str]:
    """What the server's own table of routes has."""
    with tempfile.TemporaryDirectory() as name:
        return App(NoEngine(), Store(Path(name)), "tml-no-key").routes.names


def main() -> None:
    present = version("tinker")
    pythons = {present: Path(sys.executable), **{v: sdk_python(v) for v in OLD_VERSIONS}}
    seen = {sdk: observe(sdk, python) for sdk, python in pythons.items()}
    seen[NAME] = observe(NAME, Path(sys.executable), CLIENT_FLOW)
    ours = server_routes()
    asked = {r for found, _ in seen.values() for r in found}
    routes = sorted(asked | ours, key=lambda r: r.split()[::-1])
    lines = [f"| route | {SERVER} | {' | '.join(seen)} |", f"|---|---|{'---|' * len(seen)}"]
    for route in routes:
        row = ["yes" if route in ours else "-"]
        row += [found.get(route, "-") for found, _ in seen.values()]
        lines.append(f"| `{route}` | {' | '.join(row)} |")
    lines += [
        "",
        "Steps of the flow that a version does not offer; our client's flow is",
        "another one, with fewer and longer steps:",
        "",
    ]
    for sdk, (_, steps) in seen.items():
        passed = sum(found == "ok" for found in steps.values())
        missing = ", ".join(sorted(absent(steps))) or "none"
        lines.append(f"- {sdk}: {passed} of {len(steps)} steps passed; absent: {missing}.")
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(_HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
