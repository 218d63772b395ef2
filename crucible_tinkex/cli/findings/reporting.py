"""Commands that make a page of sweeps: `report` writes it, `watch` serves it while they run."""

from __future__ import annotations

import json as json_module
import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.report.data import report_data
from crucible_tinkex.report.live import serve_page
from crucible_tinkex.report.writing import FORMATS, write_report
from crucible_tinkex.sweep.results.views.following import Followed
from crucible_tinkex.sweep.results.views.summary import existing_sweep, read_state

PORT = 8088


def make_report(
    sweeps: Sequence[str], *, storage: str, out: Path | None, format: str, json: bool
) -> None:
    """One sweep's report lies in its folder; that of several needs `out`."""
    if format not in FORMATS:
        raise ConfigError(f"--format {format!r} is none of {', '.join(FORMATS)}")
    if out is None and len(sweeps) > 1:
        raise ConfigError("a report on several sweeps needs a folder: --out DIR")
    folder = out or existing_sweep(storage, sweeps[0]).root / "report"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; --out needs a folder")
    page = write_report(_data(sweeps, storage), folder, storage=storage, format=format)
    print(json_module.dumps({"page": str(page)}) if json else page)


def in_terminal(asked: bool | None, port: int | None) -> bool:
    """Whether to watch there rather than on a page: as asked, else where no browser could be opened
    and no port was named. Raises `ConfigError` for a port in the terminal."""
    if asked and port is not None:
        raise ConfigError("--port is of the page; leave it out, or leave out --terminal")
    if asked is not None or port is not None:
        return bool(asked)
    return sys.stdout.isatty() and not _has_browser()


def _has_browser() -> bool:
    """Text browsers draw no page with scripts, and stand in its place in the terminal."""
    if sys.platform == "linux" and not (os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def watch_page(sweeps: Sequence[str], *, storage: str, port: int | None = None) -> int:
    """Serves until Ctrl-C."""
    found = [existing_sweep(storage, name) for name in dict.fromkeys(sweeps)]
    followed = [(Followed(paths), paths) for paths in found]

    def data() -> list[dict[str, Any]]:
        return [report_data(one.read(), paths) for one, paths in followed]

    data()  # what is damaged is said before there is a server

    def told(address: str) -> None:
        print(f"{address} (Ctrl-C to end)", file=sys.stderr)

    where = PORT if port is None else port
    serve_page(data, port=where, told=told)
    return 0


def _data(sweeps: Sequence[str], storage: str) -> list[dict[str, Any]]:
    found = [existing_sweep(storage, name) for name in dict.fromkeys(sweeps)]
    return [report_data(read_state(paths), paths) for paths in found]
