"""A real server process for the SDK's flow, an environment for each SDK, and the routes it used."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FLOW = Path(__file__).parent / "sdk_flow.py"
CLIENT_FLOW = Path(__file__).parent / "client_flow.py"
FLAGS = {"fwdbwd_max_chunk_len": 2}
"""Many small chunks, so that a request of nine rows goes out of order."""
_CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
_PYTHON = f"py{sys.version_info.major}{sys.version_info.minor}"
OLD_VERSIONS = ("0.25.0", "0.22.2")
_COOKBOOK_BEFORE = "0.5.8"
_CODE = """
import json, logging, sys
from pathlib import Path
from crucible_tinkex.server.web.serve import ServeOptions, serve
logging.getLogger("crucible_tinkex.server.web.app").setLevel(logging.DEBUG)
folder, flags, model = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
serve(ServeOptions(model=model, threads=1, dtype="fp32", data_dir=folder, client_flags=flags,
                   ready_file=folder / "ready.json", exit_with_parent=True))
"""
_LINE = re.compile(r"((?:GET|POST|PUT|DELETE|HEAD) \S+) (\d{3})$")
"""The server names its routes by the templates of its own table."""


class Served(NamedTuple):
    base_url: str
    key: str
    log: Path

    def routes(self) -> dict[str, set[int]]:
        """Which statuses each route has answered, by method and template."""
        found: dict[str, set[int]] = {}
        for line in self.log.read_text().splitlines():
            match = _LINE.search(line)
            if match is not None:
                route, status = match.groups()
                found.setdefault(route, set()).add(int(status))
        return found


@contextlib.contextmanager
def served(
    folder: Path, flags: dict[str, Any] | None = None, *, model: str = "nano"
) -> Iterator[Served]:
    """A server on this folder. `model` may be a folder in it; the base has that name then."""
    log, ready = folder / "server.log", folder / "ready.json"
    given = json.dumps(FLAGS if flags is None else flags)
    with (
        open(log, "wb") as out,
        subprocess.Popen(
            [sys.executable, "-c", _CODE, str(folder), given, model],
            stdin=subprocess.PIPE,
            stderr=out,
            cwd=folder,
        ) as process,
    ):
        try:
            end = time.monotonic() + 180
            while not ready.exists():
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.02)
            found = json.loads(ready.read_text())
            yield Served(found["base_url"], Path(found["api_key_file"]).read_text().strip(), log)
        finally:
            process.kill()


def run_flow(
    python: Path,
    server: Served,
    folder: Path,
    *,
    flow: Path = FLOW,
    timeout_s: float = 280,
    idle_s: float = 0,
) -> dict[str, Any]:
    """What the flow says that worked with the SDK of this Python."""
    out = folder / "flow.json"
    own = {"PYTHONPATH": str(flow.parents[2])} if flow == CLIENT_FLOW else {}
    done = subprocess.run(
        [str(python), str(flow), str(out)],
        env={**client_environment(server), **own, "SDK_FLOW_IDLE_S": str(idle_s)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def client_environment(server: Served) -> dict[str, str]:
    """Variables with which the SDK finds this server, and nothing else."""
    environment = {
        **os.environ,
        "TINKER_BASE_URL": server.base_url,
        "TINKER_API_KEY": server.key,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    for name in ("PYTHONPATH", "TINKER_PROJECT_ID", "TINKER_CREDENTIAL_CMD"):
        environment.pop(name, None)
    return environment


def sdk_python(version: str) -> Path:
    """The Python of an environment with this SDK, and our torch."""
    folder = _environment(f"tinker-{version}-{_PYTHON}")
    _install(folder, [f"tinker=={version}"])
    _lend(folder)
    return folder / "bin" / "python"


def cookbook_python(version: str) -> Path:
    """The Python of an environment with this cookbook, our SDK and our torch.

    It is installed beside what an earlier version needs: the renderers that 0.6.1 asks for are not
    on every index, and its recipes run with the earlier ones."""
    lent = hashlib.sha256(_CONSTRAINTS.read_bytes()).hexdigest()[:8]  # pip adds what these lack
    folder = _environment(f"cookbook-{version}-{_PYTHON}-{lent}")
    _lend(folder)
    needs = f"tinker-cookbook[math-rl]=={_COOKBOOK_BEFORE}"
    _install(folder, [needs], ["--no-deps", f"tinker-cookbook=={version}"])
    return folder / "bin" / "python"


def _lend(folder: Path) -> None:
    """A path file lends an environment the packages of this one, because another torch would be
    gigabytes. What is installed in its own comes first."""
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "lent.pth").write_text(sysconfig.get_path("purelib"))


def _environment(name: str) -> Path:
    """Made when it is missing, in `$CRUCIBLE_SDK_VENVS` or the user's cache."""
    chosen = os.environ.get("CRUCIBLE_SDK_VENVS")
    root = Path(chosen) if chosen else Path.home() / ".cache" / "crucible_tinkex" / "sdk"
    folder = root / name
    if not (folder / "installed").exists():
        _made(folder, [sys.executable, "-m", "venv", "--clear", str(folder)])
    return folder


def _install(folder: Path, *steps: Sequence[str]) -> None:
    """Each step is what one call of pip installs."""
    if not (folder / "installed").exists():
        python = folder / "bin" / "python"
        for step in steps:
            _made(folder, [str(python), "-m", "pip", "install", "-q", *step])
        (folder / "installed").touch()


def _made(folder: Path, command: list[str]) -> None:
    """Raises RuntimeError if the command fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        raise RuntimeError(
            f"cannot make the environment {folder}; these tests need a package index:\n"
            f"{done.stderr[-2000:]}"
        )


def absent(steps: dict[str, str]) -> set[str]:
    return {name for name, found in steps.items() if found.startswith("absent")}


def broken(steps: dict[str, str]) -> dict[str, str]:
    return {n: f for n, f in steps.items() if f != "ok" and not f.startswith("absent")}
