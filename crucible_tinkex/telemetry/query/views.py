"""The SQL views: how rows of several folders become `events`, `steps` and the others.

`events_all` and `evaluations_all` are everything. `events` and `evaluations` are the current ones:
of what describes a state of the model (`attempts.CURVE_KINDS`) they leave out the rows of an
attempt that a newer attempt of the same trial of the same sweep replaced. Those are the rows at a
step after the one that the newer attempt resumed from (its `session_start` says so in
`extra.resumed_step`), and the rows for which the newer attempt has one of the same kind, name and
step. What happened and stays true (requests made, states passed through, sessions) stays in.

`steps`, `trials`, `checkpoints` and `requests` have a column for everything that is there, so they
are made for the query that names them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from crucible_tinkex.telemetry.attempts import CURVE_KINDS
from crucible_tinkex.telemetry.log.schema import EVALUATION_SCHEMA, EVENT_SCHEMA

_CURRENT = """
CREATE TEMP TABLE last_steps AS
    SELECT sweep_id, trial_id, older AS attempt, min(step) AS step FROM (
        SELECT sweep_id, trial_id, unnest(range(attempt)) AS older,
            TRY_CAST(extra->>'resumed_step' AS BIGINT) AS step
        FROM events_all WHERE kind = 'session_start' AND trial_id <> '')
    WHERE step IS NOT NULL GROUP BY ALL;
"""
_CURRENT_VIEW = """
CREATE VIEW newest_{view} AS
    SELECT sweep_id, trial_id, {subject}, step, max(attempt) AS attempt FROM {view}_all
    WHERE (sweep_id, trial_id) IN (
        SELECT (sweep_id, trial_id) FROM {view}_all WHERE trial_id <> ''
        GROUP BY sweep_id, trial_id HAVING max(attempt) > min(attempt))
    GROUP BY ALL;
CREATE VIEW {view} AS SELECT e.* FROM {view}_all e
    LEFT JOIN last_steps l ON l.sweep_id = e.sweep_id AND l.trial_id = e.trial_id
        AND l.attempt = e.attempt
    LEFT JOIN newest_{view} n ON n.sweep_id = e.sweep_id AND n.trial_id = e.trial_id
        AND {same} AND n.step = e.step
    WHERE {always}
        (e.step <= coalesce(l.step, e.step) AND e.attempt >= coalesce(n.attempt, e.attempt));
"""
BASE_TAGS = ("train/nll", "optim/lr", "perf/step_s", "perf/tokens_per_s")
"""Columns that `steps` has even before the first step."""
_STEP_KINDS = ("training_step", "optimizer_step", "evaluation", "sample")
_STEP_KEYS = ("sweep_id", "trial_id", "step", "attempt", "epoch", "time")
_REQUEST_BASE = {
    "path": "VARCHAR",
    "attempts": "BIGINT",
    "queued_s": "DOUBLE",
    "status": "BIGINT",
    "error": "VARCHAR",
}
_REQUEST_KEYS = ("sweep_id", "trial_id", "attempt", "step", "time", "operation", "duration_s")
_TRIAL_KEYS = ("sweep_id", "trial_id", "run_name", "seed", "attempt", "time")
_SECTIONS = ("model", "lora", "optimizer", "train")
"""Of the configuration: what a trial's numbers depend on."""


def rows_view(view: str, folders: Sequence[tuple[Sequence[str], str]]) -> str:
    """`events_all` or `evaluations_all`: the union of each folder's tables; those of a folder with
    rows of schema 1 come with the sweep's id for these rows."""
    columns = (EVENT_SCHEMA if view == "events_all" else EVALUATION_SCHEMA).names
    selects = []
    for tables, old_sweep in folders:
        texts = {name: quoted(name) for name in columns}
        if old_sweep:
            is_old = "run_id IS NULL"
            texts["sweep_id"] = (
                f"CASE WHEN {is_old} THEN {_literal(old_sweep)} ELSE sweep_id END AS sweep_id"
            )
            texts["run_id"] = "coalesce(run_id, sweep_id) AS run_id"
        selects += [f"SELECT {', '.join(texts.values())} FROM {table}" for table in tables]
    return f"CREATE VIEW {view} AS {' UNION ALL '.join(selects)};"


def current_views() -> str:
    """`events` and `evaluations`."""
    events = _CURRENT_VIEW.format(
        view="events",
        subject="kind, name",
        same="n.kind = e.kind AND n.name = e.name",
        always=f"e.kind NOT IN {CURVE_KINDS} OR",
    )
    evaluations = _CURRENT_VIEW.format(
        view="evaluations", subject="example_id", same="n.example_id = e.example_id", always=""
    )
    return _CURRENT + events + evaluations


STEP_TAGS = f"SELECT DISTINCT name FROM events WHERE kind IN {_STEP_KINDS} AND value IS NOT NULL"


def steps_view(tags: Iterable[str]) -> str:
    """One row per trial and step, a column for each metric."""
    named = column_names(sorted({*tags, *BASE_TAGS} - {""}), _STEP_KEYS, ("perf", "optim"))
    columns = [
        f"arg_max(value, seq) FILTER (WHERE name = {_literal(tag)}) AS {quoted(column)}"
        for tag, column in named.items()
    ]
    return (
        "CREATE VIEW steps AS SELECT sweep_id, trial_id, step, max(attempt) AS attempt, "
        f"max(epoch) AS epoch, max(time) AS time, {', '.join(columns)} FROM events "
        f"WHERE kind IN {_STEP_KINDS} AND value IS NOT NULL "
        "GROUP BY sweep_id, trial_id, step ORDER BY sweep_id, trial_id, step"
    )


REQUEST_KEYS = """
SELECT key, list(DISTINCT json_type(extra, '$."' || key || '"')) AS types
FROM (SELECT extra, unnest(json_keys(extra)) AS key FROM events WHERE kind = 'request')
WHERE key NOT LIKE '%"%' GROUP BY key ORDER BY key
"""


def requests_view(found: Mapping[str, Sequence[str]]) -> str:
    """The request events, a column for each key of `extra`; `found`: the JSON types of each."""
    types = {key: _sql_type(names) for key, names in found.items()} | _REQUEST_BASE
    columns = [
        f"TRY_CAST(extra->>{_literal(_pointer(key))} AS {types[key]}) AS {quoted(column)}"
        for key, column in column_names(list(types), _REQUEST_KEYS, ()).items()
    ]
    return (
        "CREATE VIEW requests AS SELECT sweep_id, trial_id, attempt, step, time, "
        "regexp_replace(name, '^request/', '') AS operation, value AS duration_s, "
        f"{', '.join(columns)} FROM events WHERE kind = 'request'"
    )


CHECKPOINTS_VIEW = """
CREATE VIEW checkpoints AS SELECT sweep_id, trial_id, attempt, step, name,
    extra->>'path' AS path, time FROM events WHERE kind = 'checkpoint_saved'
"""

TRIAL_STARTS = """
SELECT sweep_id, trial_id, attempt, time, extra FROM events
WHERE kind = 'session_start' AND trial_id <> ''
QUALIFY row_number() OVER (
    PARTITION BY sweep_id, trial_id ORDER BY attempt DESC, time DESC, seq DESC) = 1
ORDER BY sweep_id, time, trial_id
"""


def trial_rows(starts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per trial out of its newest `session_start`, each hyper-parameter a column."""
    told = [(start, json.loads(start["extra"])) for start in starts]
    values = [hyperparameters(extra) for _, extra in told]
    tags = sorted({tag for row in values for tag in row})
    names = column_names(tags, _TRIAL_KEYS, ("optimizer", "train"))
    empty: dict[str, Any] = {**dict.fromkeys(_TRIAL_KEYS), **dict.fromkeys(names.values())}
    return [
        {
            **empty,
            **{key: start[key] for key in ("sweep_id", "trial_id", "attempt", "time")},
            "run_name": extra.get("run_name"),
            "seed": (extra.get("hparams") or {}).get("seed"),
            **{names[tag]: value for tag, value in row.items()},
        }
        for (start, extra), row in zip(told, values, strict=True)
    ]


def hyperparameters(extra: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted name: what decided the trial's numbers, of its configuration and its own values."""
    config = extra.get("config") or {}
    values = {
        f"{section}.{key}": value
        for section in _SECTIONS
        if isinstance(config.get(section), dict)
        for key, value in config[section].items()
    }
    values |= {k: v for k, v in (extra.get("hparams") or {}).items() if k != "seed"}
    return {k: v if _is_plain(v) else json.dumps(v) for k, v in values.items()}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def column_names(
    tags: Sequence[str], taken: Iterable[str], dropped: Sequence[str]
) -> dict[str, str]:
    """A column for each tag: letters, digits and `_`; without a prefix of `dropped` where that
    leaves it unique."""
    used = {name.lower() for name in taken}
    short = {tag: _plain(_without(tag, dropped)) for tag in tags}
    counts = [name.lower() for name in short.values()]
    columns = {}
    for tag in tags:
        name = short[tag]
        if counts.count(name.lower()) > 1 or name.lower() in used:
            name = _plain(tag)
        while name.lower() in used:
            name += "_"
        used.add(name.lower())
        columns[tag] = name
    return columns


def _without(tag: str, prefixes: Sequence[str]) -> str:
    return re.sub(rf"^(?:{'|'.join(prefixes)})[./]", "", tag) if prefixes else tag


def _plain(tag: str) -> str:
    name = re.sub(r"\W+", "_", tag, flags=re.ASCII).strip("_") or "_"
    return f"_{name}" if name[0].isdigit() else name


def _sql_type(json_types: Sequence[str]) -> str:
    present = set(json_types) - {"NULL"}
    for fitting, name in (
        ({"UBIGINT", "BIGINT"}, "BIGINT"),
        ({"UBIGINT", "BIGINT", "DOUBLE"}, "DOUBLE"),
        ({"BOOLEAN"}, "BOOLEAN"),
    ):
        if present and present <= fitting:
            return name
    return "VARCHAR"


def _pointer(key: str) -> str:
    return f'$."{key}"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """As a column's name: `group` is also a word of SQL."""
    return '"' + name.replace('"', '""') + '"'
