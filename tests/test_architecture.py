"""The laws of the house, read off the source with `ast`: layers, homes, sizes, cycles, excepts."""

from __future__ import annotations

import ast
import gc
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "crucible_tinkex"
MAX_LINES = 400
MAX_FILES = 10

# Imports go down only: a module may import from its own layer and from the layers above this line.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "names", "version", "events", "metrics", "user_code", "user_calls", "storage"),
    ("protocol",),
    ("config", "datasets", "scoring"),
    ("client", "telemetry", "registry", "search", "bench"),
    ("training",),
    ("runtime",),
    ("sweep",),
    ("server",),
    ("weights",),
    ("tuning",),
    ("report", "doctor"),
    ("api", "embedded", "testing", "cli", "__main__", "__init__"),
)
WORDS = LAYERS[0]
# Rooms of one layer in which imports go down only, too; what is not in a room stands above them.
ROOMS: dict[str, tuple[str, ...]] = {
    "client": ("interface", "http", "session", "checkpoints", "model"),
    "server": ("operations", "bases", "model", "store", "engine", "sessions", "web"),
}
# Sides that know no other layer than these.
KNOWS: dict[str, tuple[str, ...]] = {
    "protocol": ("protocol", *WORDS),
    "client": ("client", "protocol", *WORDS),
    "server": ("server", "protocol", *WORDS),
}

# One dependency, one home.
HOMES: dict[str, tuple[str, ...]] = {
    "ray": ("runtime",),
    "httpx": ("client.http.connections",),
    "httpx_aiohttp": ("client.http.connections",),
    "aiohttp": ("client.http.connections", "runtime.jobs"),
    "pyarrow": (
        "telemetry",
        "sweep.results.views.tables",
        "sweep.results.conclusion",
        "api",
        "datasets.files.containers",
    ),
    "tensorboardX": ("telemetry.tensorboard",),
    "obstore": ("storage",),
    "huggingface_hub": ("datasets", "server"),
    "jinja2": ("datasets.tokens.chat", "report.page", "server.web.openai"),
    "jsonschema": ("scoring.answers",),
    "opentelemetry": ("telemetry.bridge.otel", "telemetry.bridge.meters", "telemetry.tracing"),
    "duckdb": ("telemetry.query",),
    "optuna": ("search",),
    "tinker": ("client.sdk",),
    "google": ("protocol.proto",),
    "scipy": ("bench", "search.points.drawing"),
    "torch": ("server",),
    "transformers": ("server",),
    "safetensors": ("server",),
    "starlette": ("server.web",),
    "uvicorn": ("server.web.serve",),
    "tokenizers": ("datasets", "server"),
    "typer": ("cli",),
    "rich": ("cli",),
}
BORDERS = {
    "user_calls",
    "training.host",
    "sweep.results.views.view",
    "training.losses.gradient_hooks",
    "training.harness.cells",
    "telemetry.bridge.bridge",
    "runtime.cluster",
    "server.engine.engine",
}
"""Modules in which a broad except is the border between strangers' errors and ours."""


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(p for p in parts if p != "__init__") or "__init__"] = path
    return found


MODULES = modules()


@cache
def parsed(path: Path) -> ast.Module:
    gc.disable()  # Python 3.11's parser fails if garbage is collected by Python code within it
    try:
        return ast.parse(path.read_text())
    finally:
        gc.enable()


def imports(path: Path) -> Iterator[str]:
    """Every imported module name, also inside functions; not those for type checking only."""
    tree = parsed(path)
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name.removeprefix("crucible_tinkex.") in MODULES else node.module


def ours(path: Path) -> Iterator[str]:
    for name in imports(path):
        if name == "crucible_tinkex" or name.startswith("crucible_tinkex."):
            yield name.removeprefix("crucible_tinkex").lstrip(".") or "__init__"


def layer(module: str) -> int:
    top = module.split(".")[0]
    return next(i for i, names in enumerate(LAYERS) if top in names)


def room(module: str) -> int:
    """Where the module stands among those of its layer; above all rooms if it is in none."""
    rooms = ROOMS[module.split(".")[0]]
    name = module.split(".")[1] if "." in module else ""
    return rooms.index(name) if name in rooms else len(rooms)


def inside(module: str, homes: tuple[str, ...]) -> bool:
    return any(module == h or module.startswith(f"{h}.") for h in homes)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    for imported in ours(MODULES[module]):
        assert layer(imported) <= layer(module), f"{module} imports {imported}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[0] in KNOWS])
def test_client_and_server_know_only_the_protocol(module: str) -> None:
    for imported in ours(MODULES[module]):
        assert inside(imported, KNOWS[module.split(".")[0]]), f"{module} imports {imported}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[0] in ROOMS])
def test_imports_between_rooms_go_down(module: str) -> None:
    for imported in ours(MODULES[module]):
        if imported.split(".")[0] == module.split(".")[0]:
            assert room(imported) <= room(module), f"{module} imports {imported}"


@pytest.mark.parametrize(
    "room",
    sorted({path.parent for path in MODULES.values()}),
    ids=lambda room: str(room.relative_to(PACKAGE)),
)
def test_rooms_are_small(room: Path) -> None:
    assert len([p for p in room.glob("*.py") if p.stem != "__init__"]) <= MAX_FILES


def test_no_two_files_of_one_name() -> None:
    names = Counter(m.split(".")[-1] for m, p in MODULES.items() if inside(m, tuple(KNOWS)))
    rooms = {name for top in KNOWS for name in ROOMS.get(top, ())}
    assert not {name for name, count in names.items() if count > 1} - rooms


@pytest.mark.parametrize("module", MODULES)
def test_one_dependency_one_home(module: str) -> None:
    for name in imports(MODULES[module]):
        homes = HOMES.get(name.split(".")[0])
        assert homes is None or inside(module, homes), f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short_and_say_what_they_are(module: str) -> None:
    text = MODULES[module].read_text()
    assert len(text.splitlines()) <= MAX_LINES
    described = ast.get_docstring(parsed(MODULES[module]))
    assert described or not text.strip(), f"{module} has no docstring"
    assert module.rsplit(".", 1)[-1] not in {"utils", "helpers", "common", "misc"}


def test_no_import_cycles() -> None:
    graph = {m: {i for i in ours(p) if i in MODULES} - {m} for m, p in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"cycle: {' -> '.join((*trail, module))}"
        if module in done:
            return
        for imported in graph[module]:
            visit(imported, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_broad_excepts_stand_at_the_borders(module: str) -> None:
    for node in ast.walk(parsed(MODULES[module])):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            raises = isinstance(node.body[-1], ast.Raise)  # cleans up or translates
            assert not broad or raises or module in BORDERS, f"{module}:{node.lineno}"


def test_session_actors_stay_light() -> None:
    """What a session actor imports, followed through our own modules, has no heavy library."""
    reached: set[str] = set()
    # Imported where an experiment has steps, or an adapter, of its own.
    on_use = {"training.trial_steps", "training.recipes.adapted"}
    queue = ["runtime.actors.session_actor"]
    while queue:
        module = queue.pop()
        if module in reached or module not in MODULES or module in on_use:
            continue
        reached.add(module)
        queue += list(ours(MODULES[module]))
        queue += [module.rsplit(".", 1)[0]] if "." in module else []
    heavy = {"torch", "transformers", "pandas", "ray.tune", "optuna", "tensorboardX", "duckdb"}
    lazily = {"search.strategies"}  # optuna is imported when a sampled strategy is used
    for module in reached - lazily:
        assert not heavy & set(imports(MODULES[module])), module
