"""The unmodified official SDK of this environment against a real server process."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from protocol_table import BY_TIME, SERVER, TABLE, column, server_routes
from sdk_server import absent, broken, run_flow, served


def test_the_table_has_the_routes_of_the_server() -> None:
    assert set(column(TABLE.read_text(), SERVER)) == server_routes(), (
        "run tests/server/protocol_table.py"
    )


def test_the_whole_flow(cache: Path, tmp_path: Path) -> None:
    with served(tmp_path) as server:
        found = run_flow(Path(sys.executable), server, tmp_path)
        routes = server.routes()
    assert found["version"] == version("tinker")
    assert not broken(found["steps"]), "\n".join(broken(found["steps"]).values())
    assert absent(found["steps"]) <= {"archive"}  # dropped by 0.36
    assert not [r for r, statuses in routes.items() if any(s >= 500 for s in statuses)]
    assert set(column(TABLE.read_text(), found["version"])) - BY_TIME == set(routes) - BY_TIME, (
        "run tests/server/protocol_table.py: docs/protocol.md is not what this test saw"
    )


def test_the_flow_with_every_flag_turned_the_other_way(cache: Path, tmp_path: Path) -> None:
    flags = {
        "proto_compress_fwdbwd": True,
        "parallel_fwdbwd_chunks": False,
        "fwdbwd_max_chunk_len": 1,
        "use_pyqwest_transport": False,
    }
    with served(tmp_path, flags) as server:
        found = run_flow(Path(sys.executable), server, tmp_path)
    assert not broken(found["steps"]), "\n".join(broken(found["steps"]).values())
