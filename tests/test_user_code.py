"""Users' own code by name: found, hashed, read anew when it changes, refused by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crucible_tinkex.errors import ConfigError, TrialFailedError
from crucible_tinkex.user_code import check_code, code_hash, load

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module into a folder on the path; what was imported from it is forgotten."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def written(name: str, text: str) -> None:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    yield written
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_changed_module_is_read_anew_with_what_it_imports(write: Write) -> None:
    write("uc_main.py", "from uc_part import value\ndef f():\n    return value\n")
    write("uc_part.py", "value = 1\n")
    first = code_hash("uc_main:f")
    assert load("uc_main:f", what="function")() == 1
    write("uc_part.py", "value = 22\n")
    assert code_hash("uc_main:f") != first
    assert load("uc_main:f", what="function")() == 22


def test_a_changed_module_is_read_anew_by_many_threads_at_once(write: Write) -> None:
    write("uc_many.py", "def f():\n    return 1\n")
    assert load("uc_many:f", what="function")() == 1
    write("uc_many.py", "import time\ntime.sleep(0.05)\ndef f():\n    return 2\n")
    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(load, "uc_many:f", what="function") for _ in range(4)]
    assert [f.result()() for f in found] == [2] * 4


def test_the_hash_is_of_the_users_own_source_alone(write: Write) -> None:
    write("uc_pkg/__init__.py", "")
    write("uc_pkg/a.py", "import json\nfrom . import b\nfrom uc_pkg.c import x\ndef f(): ...\n")
    write("uc_pkg/b.py", "b = 1\n")
    write("uc_pkg/c.py", "x = 1\n")
    write("uc_pkg/unused.py", "y = 1\n")
    first = code_hash("uc_pkg.a:f")
    write("uc_pkg/unused.py", "y = 2\n")
    write("uc_other.py", "z = 1\n")
    assert code_hash("uc_pkg.a:f") == first
    for part in ("b", "c"):
        write(f"uc_pkg/{part}.py", "x = b = 5\n")
        changed = code_hash("uc_pkg.a:f")
        assert changed != first
        first = changed


def test_another_source_than_the_sweeps_ends_the_trial(write: Write) -> None:
    write("uc_node.py", "def f(): ...\n")
    source = code_hash("uc_node:f")
    check_code("uc_node:f", source, what="function")
    write("uc_node.py", "def f(): ...  # edited\n")
    with pytest.raises(TrialFailedError, match="'uc_node:f': its source is not the one"):
        check_code("uc_node:f", source, what="function")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("uc_bad", "'uc_bad' must be written module:function"),
        ("uc bad:f", "must be written module:function"),
        ("uc_nowhere:f", "No module named 'uc_nowhere'; is it on the Python path?"),
        ("uc_bad:g", "uc_bad has no g"),
        ("uc_raises:f", "importing uc_raises raised ZeroDivisionError"),
        ("uc_exits:f", "importing uc_exits raised SystemExit: 3"),
        ("uc_needs:f", "No module named 'uc_not_there'"),
        ("uc_syntax:f", "importing uc_syntax raised SyntaxError"),
    ],
)
def test_what_cannot_be_loaded_is_named(write: Write, name: str, message: str) -> None:
    write("uc_bad.py", "def f(): ...\n")
    write("uc_raises.py", "1 / 0\n")
    write("uc_exits.py", "raise SystemExit(3)\n")
    write("uc_needs.py", "import uc_not_there\n")
    write("uc_syntax.py", "def f(:\n")
    with pytest.raises(ConfigError, match=message):
        load(name, what="function")
