"""What users write themselves and name as `module:attribute`: found, and known again by its source.

The current folder is looked at, too. A module whose source has changed since this process read it
is read anew (session processes are kept from sweep to sweep, and so is a notebook), with those of
its own package, or of its own folder, that it imports. The hash is over the source of all these;
what comes from elsewhere (installed packages, files that the code reads) is not in it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import re
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import ConfigError, TrialFailedError

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""How a function or class of the user's is written; whether there is such a one, `load` tells."""

_loaded: dict[str, str] = {}
"""Modules that were loaded by this one, with the hash of their source then."""
_loading: dict[str, threading.RLock] = {}
"""By top-level package. Sessions load in threads (`user_calls`), and a module that another one is
in the middle of importing must not be forgotten."""


def load(name: str, *, what: str) -> Any:
    """The object at `module:attribute`. Raises `ConfigError` that begins with `what` and says what
    is missing, also where the module itself raises or wants to end the process."""
    module, attribute = _parts(name, what)
    with _loading.setdefault(module.partition(".")[0], threading.RLock()):
        return _loaded_now(name, module, attribute, what)


def load_function(name: str, *, what: str) -> Callable[..., Any]:
    """The function at `module:function`. Raises as `load`, and where it cannot be called."""
    found = load(name, what=what)
    if not callable(found):
        raise ConfigError(f"{what} {name!r} cannot be called")
    made: Callable[..., Any] = found
    return made


def _loaded_now(name: str, module: str, attribute: str, what: str) -> Any:
    source = code_hash(name, what=what)
    if _loaded.get(module, source) != source:
        for own in _own_modules(module):
            sys.modules.pop(own, None)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{what} {name!r}: {error}; is it on the Python path?") from error
    except AttributeError:
        raise ConfigError(f"{what} {name!r}: {module} has no {attribute}") from None
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything
        raise ConfigError(
            f"{what} {name!r}: importing {module} raised {type(error).__name__}: {error}"
        ) from error
    _loaded[module] = source
    return found


def code_hash(name: str, *, what: str = "function") -> str:
    """SHA-256 of the source behind `module:attribute`; of nothing where it has none. Raises
    `ConfigError` where there is no such module."""
    module, _ = _parts(name, what)
    digest = hashlib.sha256()
    for own, file in sorted(_own_modules(module, what=what, name=name).items()):
        text = file.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{own}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()


def check_code(name: str, expected: str, *, what: str) -> None:
    """Raises `TrialFailedError` where the source here is not the one that the sweep was asked with:
    another node has another copy, or the file was changed meanwhile."""
    if code_hash(name, what=what) != expected:
        raise TrialFailedError(
            f"{what} {name!r}: its source is not the one that the sweep began with; give every "
            "node the same copy, and leave it as it is while a sweep runs"
        )


def _parts(name: str, what: str) -> tuple[str, str]:
    module, _, attribute = name.partition(":")
    if not (module and attribute) or not all(p.isidentifier() for p in module.split(".")):
        form = "Class" if what == "adapter" else "function"
        raise ConfigError(f"{what} {name!r} must be written module:{form}")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    return module, attribute


def _own_modules(module: str, *, what: str = "function", name: str = "") -> dict[str, Path]:
    """The module and what it imports of its own package or folder, by name, with their files."""
    importlib.invalidate_caches()  # the file may be younger than the last look at its folder
    try:
        first = _file(module)
    except (Exception, SystemExit) as error:  # finding `a.b` imports `a`, a stranger's
        raise ConfigError(f"{what} {name!r}: {error}; is it on the Python path?") from error
    if first is None:
        return {}
    found, waiting = {module: first}, [module]
    package = module.partition(".")[0]
    alone = package == module and first.name != "__init__.py"
    while waiting:
        for other in _imported(waiting.pop(), found) - found.keys():
            file = _neighbour(other, package, first.parent if alone else None)
            if file is not None:
                found[other] = file
                waiting.append(other)
    return found


def _file(module: str) -> Path | None:
    """Where its source is; None where it has none. Raises what finding it raises."""
    known = sys.modules.get(module)
    if known is not None:
        origin = getattr(known, "__file__", None)
    elif spec := find_spec(module):
        origin = spec.origin
    else:
        raise ModuleNotFoundError(f"No module named {module!r}")
    file = Path(origin) if origin else None
    return file if file and file.suffix == ".py" and file.is_file() else None


def _neighbour(module: str, package: str, folder: Path | None) -> Path | None:
    """The file of a module of the package, or beside a module that is in none."""
    if module.partition(".")[0] != package if folder is None else "." in module:
        return None
    try:
        file = _file(module)
    except (ImportError, AttributeError, ValueError):
        return None  # a name that is imported from a module is no module
    return file if folder is None or (file and file.parent == folder) else None


def _imported(module: str, files: dict[str, Path]) -> set[str]:
    """Names of modules that the source may import; a name too many is harmless."""
    try:
        tree = ast.parse(files[module].read_bytes())
    except (SyntaxError, ValueError):
        return set()  # importing it tells
    home = module if files[module].name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = home.split(".")[: len(home.split(".")) - max(0, node.level - 1)]
            start = ".".join(above) if node.level else ""
            base = ".".join(part for part in (start, node.module or "") if part)
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names - {""}
