"""`tune`: a data file in, an adapter out, and an experiment file that does the same.

Everything is chosen once. What was chosen lies in an experiment file; called again, `tune` goes on
as that file says. Nothing is spent before all of it has been checked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from crucible_tinkex.client.http.address import BASE_URL_VARIABLE
from crucible_tinkex.client.http.key import KEY_FILE_VARIABLE, KEY_VARIABLE
from crucible_tinkex.config import EMBEDDED, Experiment, parse_budget
from crucible_tinkex.config.section import set_dotted
from crucible_tinkex.config.sweep.run import DEFAULT_STORAGE
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import SweepPaths, base_name, check_segment
from crucible_tinkex.search.auto_settings import chosen
from crucible_tinkex.search.learned.records import published
from crucible_tinkex.storage import storage_errors
from crucible_tinkex.sweep.preparing.experience import finished_trials, speed
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep, prepare
from crucible_tinkex.sweep.results.leaderboard import Objective, best
from crucible_tinkex.sweep.results.views.summary import read_state
from crucible_tinkex.tuning import declaration
from crucible_tinkex.tuning.again import news, said_anew
from crucible_tinkex.tuning.choices import choose
from crucible_tinkex.tuning.looking import look
from crucible_tinkex.weights.export import ADAPTER_FILES, Exported, export_trial

DEFAULT_BASE = "smollm2-135m-instruct"
AT_ONCE = 4
"""Sessions on this machine: more would start before there are results to choose by."""
EMBEDDED_BASES = ("nano", DEFAULT_BASE)
Hearer: TypeAlias = Callable[[str], object]


def _deaf(line: str) -> None:
    pass


@dataclass(frozen=True)
class Wish:
    """What a person said; None: to be chosen. `budget`: as `parse_budget` reads it."""

    data: str
    eval: str | None = None
    base: str | None = None
    service: str | None = None
    budget: str | None = None
    prices: str | None = None
    trials: int | None = None
    out: str | None = None
    name: str | None = None
    storage: str = DEFAULT_STORAGE
    executor: Literal["ray", "local"] | None = None

    @property
    def sweep(self) -> str:
        if self.name:
            return check_segment(self.name, what="name")
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(self.data).name.split(".")[0]).strip("-")
        return f"tune-{stem or 'data'}"

    @property
    def caps(self) -> dict[str, Any]:
        """Dotted keys of the budget."""
        prices = {} if self.prices is None else {"budget.prices": os.path.abspath(self.prices)}
        return {**(parse_budget(self.budget) if self.budget else {}), **prices}


@dataclass(frozen=True)
class Tuning:
    """A sweep that may be run. `reasons`: what was chosen and why, a line each."""

    prepared: PreparedSweep
    reasons: tuple[str, ...]
    file: Path
    """The experiment file that does the same."""
    out: Path
    """Where the adapter goes."""

    def export(self) -> Exported | None:
        """Write the best adapter; None if nothing was trained as far as a checkpoint. Of a sweep
        that ended before any trial was complete: the one that came furthest."""
        paths = self.prepared.paths
        best = _best_trial(paths)
        return None if best is None else export_trial(paths, best, self.out, force=True)


def propose(wish: Wish, warned: Hearer = _deaf, doing: Hearer = _deaf) -> Tuning:
    """Look at data and service, choose, and write the experiment file. `warned` hears of a service
    that the environment chose, before it is asked anything, `doing` what takes a while. Raises
    `ConfigError`, `DataError`, and what the service refuses."""
    paths = SweepPaths.of(wish.storage, wish.sweep)
    file = paths.root.with_name(f"{wish.sweep}.toml")
    out = Path(wish.out).expanduser().absolute() if wish.out else paths.root / "adapter"
    _check_out(out)
    if file.exists():
        text = file.read_text(encoding="utf-8")
        found = _news(wish, Experiment.from_toml(file), paths)
        source = declaration.changed(text, found) if found else text
        experiment = _as_written(wish, file, found)
        reasons: Sequence[str] = (f"goes on as {file} says", *said_anew(found))
    elif paths.root.exists() and any(paths.root.iterdir()):
        raise ConfigError(f"{paths.root} exists, and was not made by tune; choose another --name")
    else:
        experiment, reasons = _chosen(wish, paths, warned, doing)
        declaration.write(file, declaration.text_of(experiment, file.parent, reasons))
        experiment = Experiment.from_toml(file)
        text = source = file.read_text(encoding="utf-8")
    prepared = prepare(experiment, storage=str(file.parent), name=wish.sweep, source=source)
    if source != text:
        declaration.write(file, source)
    return Tuning(prepared, tuple(reasons), file, out)


# --- again ----------------------------------------------------------------------------------------


def _news(wish: Wish, found: Experiment, paths: SweepPaths) -> dict[str, Any]:
    asked = wish.caps if wish.trials is None else {**wish.caps, "search.trials": wish.trials}
    return news(found, paths, asked, has_budget=wish.budget is not None)


def _as_written(wish: Wish, file: Path, changed: Mapping[str, Any]) -> Experiment:
    """What the file says, with what was said anew. Raises `ConfigError` if it is about something
    else."""
    found = Experiment.from_toml(file, overrides=changed)
    asked = _draft(wish)
    other = [
        key
        for key, was in (
            ("data.train", found.data.train),
            ("data.eval", found.data.eval),
            ("model.base", found.model.base),
        )
        if (said := _said(asked, key)) is not None and said != was
    ]
    if other:
        raise ConfigError(
            f"{file} was made for another {' and '.join(other)}; choose another --name, or delete "
            "the file and its sweep"
        )
    return found


def _said(draft: Experiment, key: str) -> str | None:
    found = draft.setting(key)
    return found if isinstance(found, str) else None


# --- anew -----------------------------------------------------------------------------------------


def _chosen(
    wish: Wish, paths: SweepPaths, warned: Hearer, doing: Hearer
) -> tuple[Experiment, Sequence[str]]:
    raw, drafted = _raw(wish), _draft(wish)
    storage, base = paths.root.parent, drafted.model.base
    on = told(base, drafted.service.base_url, os.environ)
    if drafted.service.base_url is None:
        warned(on)
    known = speed(storage, base)
    in_hours = "budget.hours" in wish.caps
    facts = look(raw, timed=in_hours and known is None, tokens_per_s=known, doing=doing)
    choices = choose(facts, wish.caps)
    for key, value in choices.settings.items():
        if key != "search.trials" or wish.trials is None:
            set_dotted(raw, key, value)
    records, _ = finished_trials(storage)
    found = chosen(
        Experiment.build(raw),
        steps=choices.steps,
        records=[*published(), *records],
        budget=choices.trials,
    )
    rows = f"{facts.lengths.rows} rows of format {facts.format}"
    return found.experiment, (on, rows, *choices.reasons, *found.notes)


def _draft(wish: Wish) -> Experiment:
    return Experiment.build(_raw(wish))


def _raw(wish: Wish) -> dict[str, Any]:
    base, service = where(wish.base, wish.service, os.environ)
    raw: dict[str, Any] = {
        "name": wish.sweep,
        "service": {} if service is None else {"base_url": service},
        "model": {"base": base},
        "data": {"train": wish.data},
        "search": {"strategy": "auto"},
        "run": {"storage": wish.storage},
    }
    if wish.eval is not None:
        raw["data"]["eval"] = wish.eval
    if wish.trials is not None:
        raw["search"]["trials"] = wish.trials
    executor = wish.executor or ("local" if service == EMBEDDED else None)
    if executor:
        raw["run"]["executor"] = executor
    if service == EMBEDDED:
        raw["run"]["max_concurrent"] = AT_ONCE
    for key, value in wish.caps.items():
        set_dotted(raw, key, value)
    return raw


def told(base: str, service: str | None, environ: Mapping[str, str]) -> str:
    """What is trained where, and how to have it otherwise where that was not said."""
    if service is None:
        address = environ.get(BASE_URL_VARIABLE)
        on = f"{address} ({BASE_URL_VARIABLE})" if address else "hosted Tinker, which is billed,"
        key = next(name for name in (KEY_VARIABLE, KEY_FILE_VARIABLE) if environ.get(name))
        return f"{base} on {on} as {key} is set; --service embedded trains it on this machine"
    return f"{base} on {'the embedded server' if service == EMBEDDED else service}"


def where(
    base: str | None, service: str | None, environ: Mapping[str, str]
) -> tuple[str, str | None]:
    """The base and the address of its service (None: hosted Tinker): the embedded server, unless an
    address is given, or a base that is not the embedded server's and a key."""
    if service is not None and service != EMBEDDED:
        if base is None:
            raise ConfigError(f"--service {service} needs --base, a name that the service knows")
        return base, service
    if base is None:
        return DEFAULT_BASE, EMBEDDED
    has_key = any(environ.get(name) for name in (KEY_VARIABLE, KEY_FILE_VARIABLE))
    is_local = base_name(base) in EMBEDDED_BASES or Path(base).exists()
    return base, None if has_key and not is_local and service is None else EMBEDDED


# --- the adapter ----------------------------------------------------------------------------------


def _check_out(folder: Path) -> None:
    """Raise `ConfigError` for a folder that holds something else than an adapter."""
    with storage_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--out {folder} is a file; choose another folder")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / ADAPTER_FILES[1]).exists():
            raise ConfigError(f"--out {folder} is not empty and no adapter; choose another folder")


def _best_trial(paths: SweepPaths) -> str | None:

    state = read_state(paths)
    winner = best(state)
    if winner is not None and not winner.best_trial.reference:
        return winner.best_trial.trial_id
    objective = Objective.of(state)
    found = [t for t in state.trials.values() if not t.reference and t.checkpoints and t.results]
    furthest = min(
        found,
        key=lambda t: (-t.step, objective.key(objective.metrics(t).get(objective.metric)), t.index),
        default=None,
    )
    return None if furthest is None else furthest.trial_id
