"""The `crucible` command in the test's own process: what it says and how it ends, without the
seconds in which a new process imports everything. Processes stay where they are the point: signals,
a driver that dies, file handles."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from crucible_tinkex.cli.app import main


def crucible(
    *arguments: str, folder: Path | None = None, said: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run it in `folder`; `said` is its standard input."""
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    code: object = 0
    with (
        contextlib.chdir(folder or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        patch.object(sys, "stdin", io.StringIO(said)),
        patch.object(sys, "argv", ["crucible", *arguments]),
    ):
        try:
            main()
        except SystemExit as e:
            code = e.code
    told = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(arguments, int(str(code or 0)), *told)
