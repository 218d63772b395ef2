"""Our own client against a real server process; its column of docs/protocol.md."""

from __future__ import annotations

import sys
from pathlib import Path

from client_flow import NAME
from protocol_table import BY_TIME, TABLE, cells, column
from sdk_server import CLIENT_FLOW, absent, broken, run_flow, served


def test_the_whole_flow(cache: Path, tmp_path: Path) -> None:
    with served(tmp_path) as server:
        found = run_flow(Path(sys.executable), server, tmp_path, flow=CLIENT_FLOW)
        routes = server.routes()
    assert not broken(found["steps"]), "\n".join(broken(found["steps"]).values())
    assert not absent(found["steps"])
    assert not [r for r, statuses in routes.items() if any(s >= 500 for s in statuses)]
    routes["POST retrieve_future"].discard(408)  # "ask again", on a slow machine
    seen, written = (
        {r: c for r, c in found.items() if r not in BY_TIME}
        for found in (cells(routes), column(TABLE.read_text(), NAME))
    )
    assert written == seen, (
        "run tests/server/protocol_table.py: docs/protocol.md is not what this test saw"
    )
