"""The only place that builds or parses names: sweeps, checkpoints, `tinker://` paths, folders."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from crucible_tinkex.errors import ConfigError

_SEGMENT = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.=-]+")
_RUN_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,255}$")
CHECKPOINT_KINDS = ("weights", "sampler_weights", "external_weights")
_BASE_ALIASES = {"smollm2-135m": "smollm2-135m-instruct"}
_HUB_IDS = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
SERVER_LOCK = "server.lock"
"""In the data folder of a server: held while it works there."""
NOT_FOR_TRAINING = frozenset({"sampler_weights", "external_weights"})


def check_segment(value: str, *, what: str) -> str:
    """Return `value` if it is safe as one path segment; raise `ConfigError` otherwise."""
    if not _SEGMENT.match(value) or ".." in value:
        raise ConfigError(
            f"{what} {value!r} must be 1 to 128 letters, digits, '_', '-' or '.', "
            "beginning with a letter or digit"
        )
    return value


def base_name(name: str) -> str:
    """The name that stands for a base model everywhere; an older name of it is an alias."""
    return _BASE_ALIASES.get(name, name)


def hub_id(name: str) -> str:
    """What others call a base model: its name on the hub, or the name or folder as given."""
    return _HUB_IDS.get(base_name(name), name)


def canonical_json(value: Any) -> str:
    """The one text form used for identities: sorted keys, no spaces, floats by repr."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any, length: int = 12) -> str:
    """Hex identity of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def plain(value: Any) -> Any:
    """Results as JSON has them: lists for tuples, and None for what it has no number for."""
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def run_dir_name(
    index: int, config: Mapping[str, Any], seed: int, *, reference: bool = False
) -> str:
    """A short, sortable TensorBoard run name: `0003-lr=0.001-rank=8-s0`, at most 80 characters;
    `0001-s0` where nothing varies, and `0000-base-s0` of the untrained base (`reference`)."""
    parts = [f"{_short_key(k)}={_short_value(v)}" for k, v in config.items()]
    slug = _UNSAFE.sub("_", "-".join(parts))[:66].rstrip("-_.")
    what = "base" if reference else slug
    return "-".join([f"{index:04d}", *([what] if what else []), f"s{seed}"])


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Column heads for dotted keys: the last part, where that says which key it is."""
    short = {key: _short_key(key) for key in keys}
    twice = {name for name, count in Counter(short.values()).items() if count > 1}
    return {key: key if name in twice else name for key, name in short.items()}


def _short_key(key: str) -> str:
    last = key.rsplit(".", 1)[-1]
    return {"learning_rate": "lr"}.get(last, last)


def _short_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def checkpoint_name(trial_id: str, attempt: int, step: int) -> str:
    """Deterministic and sortable; an attempt never overwrites what an older one saved."""
    return f"{trial_id}-a{attempt:03d}-step{step:08d}"


def sampler_name(trial_id: str, attempt: int, step: int) -> str:
    """As `checkpoint_name`, of the weights alone."""
    return f"{checkpoint_name(trial_id, attempt, step)}-sampler"


class TinkerPath(NamedTuple):
    """`tinker://RUN/KIND/NAME`; `kind` is one of `CHECKPOINT_KINDS`."""

    run_id: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"tinker://{self.run_id}/{self.kind}/{self.name}"

    @property
    def checkpoint_id(self) -> str:
        return f"{self.kind}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> TinkerPath:
        """Raises `ConfigError` for anything but exactly three safe segments."""
        path = cls.read(text)
        if path.kind not in CHECKPOINT_KINDS or str(path) != text:
            raise _not_a_path(text)
        return path

    @classmethod
    def read(cls, text: str) -> TinkerPath:
        """As `parse`, and what other services write: `tinker://RUN/NAME`, which is for sampling,
        and kinds of their own."""
        parts = text.removeprefix("tinker://").split("/")
        if len(parts) == 2:
            parts.insert(1, "sampler_weights")
        if (
            not text.startswith("tinker://")
            or len(parts) != 3
            or not _RUN_ID.match(parts[0])
            or ".." in parts[0]
            or not _SEGMENT.match(parts[1])
        ):
            raise _not_a_path(text)
        check_segment(parts[2], what="checkpoint name")
        return cls(*parts)


def model_id_of(session_id: str, number: int) -> str:
    """The protocol fixes it: clients compute it, too."""
    return f"{session_id}:train:{number}"


def session_of(model_id: str) -> str:
    """The session of a model, or of a run, whose id is the model's; empty for other forms."""
    return model_id.rpartition(":train:")[0]


def _not_a_path(text: str) -> ConfigError:
    return ConfigError(f"{text!r} is not a checkpoint path tinker://RUN/KIND/NAME")


def storage_folder(storage: str | Path) -> Path:
    """Raises `ConfigError` for a bucket."""
    if "://" in str(storage):
        raise ConfigError(f"storage {str(storage)!r} must be a local or shared folder")
    return Path(storage).expanduser()


class SweepPaths(NamedTuple):
    """Every file of one sweep, below `<storage>/<sweep>/`."""

    root: Path

    @classmethod
    def of(cls, storage: str | Path, sweep: str) -> SweepPaths:
        check_segment(sweep, what="sweep name")
        return cls(storage_folder(storage).resolve() / sweep)

    @classmethod
    def below(cls, storage: Path) -> list[SweepPaths]:
        """Every sweep of a storage, by name, also one that is only starting."""
        found = {p.parent for p in (*storage.glob("*/journal"), *storage.glob("*/resolved.json"))}
        return [cls(root) for root in sorted(found)]

    @property
    def lock(self) -> Path:
        """Held by the driver while it runs the sweep."""
        return self.root / "lock"

    @property
    def experiment(self) -> Path:
        return self.root / "experiment.toml"

    @property
    def resolved(self) -> Path:
        return self.root / "resolved.json"

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def events(self) -> Path:
        return self.root / "events"

    @property
    def evaluations_after(self) -> Path:
        """Of trained weights, made after the fact."""
        return self.root / "evaluations_after"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tb"

    @property
    def control(self) -> Path:
        """Commands to the running sweep."""
        return self.root / "control"

    @property
    def service(self) -> Path:
        """The embedded server's data: checkpoints, key, log."""
        return self.root / "service"
