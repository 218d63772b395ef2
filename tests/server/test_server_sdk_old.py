"""Older official SDKs, each from an environment of its own (see `sdk_server.sdk_python`).

They need a package index once; where there is none they fail and say so.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from protocol_table import BY_TIME, TABLE, column
from sdk_server import OLD_VERSIONS, absent, broken, run_flow, sdk_python, served

NOT_IN = {
    "gspo",
    "sample_topk",
    "prompt_logprobs_last_n",
    "download_urls",
    "finish",
    "save_state_over_another",
    "sampler_handle",
    "an_abandoned_sample",
    "rest_client_of_its_own",
    "cli_lists",
    "cli_checkpoints",
}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_the_whole_flow(cache: Path, tmp_path: Path, version: str) -> None:
    python = sdk_python(version)
    with served(tmp_path) as server:
        found = run_flow(python, server, tmp_path)
        routes = server.routes()
    assert found["version"] == version
    assert not broken(found["steps"]), "\n".join(broken(found["steps"]).values())
    assert absent(found["steps"]) <= NOT_IN
    assert not [r for r, statuses in routes.items() if any(s >= 500 for s in statuses)]
    assert set(column(TABLE.read_text(), version)) - BY_TIME == set(routes) - BY_TIME
