"""What an adapter is: the seed's eight callbacks, which users implement for back ends of their own.

They are pure: no service, no state. A session (`session.TinkexSession`) trains through them, so
another adapter changes what a row becomes, how rows are batched and what counts as good, and
nothing else. Options are given by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.protocol.wire import Datum, SamplingParams
from crucible_tinkex.training.adapter.experiment import LoraExperiment
from crucible_tinkex.user_code import load


@runtime_checkable
class LoraAdapter(Protocol):
    """See the module."""

    def generate_id(self) -> str:
        """A new id, safe as a name."""
        ...

    def create_experiment(self, *args: Any, **options: Any) -> LoraExperiment:
        """A pending experiment of `name`, `description`, `tags` and `config`."""
        ...

    def batch_dataset(self, dataset: Sequence[Any], batch_size: int) -> Sequence[Sequence[Any]]:
        """Rows in portions, in order; no row is lost."""
        ...

    def format_training_data(self, *args: Any, **options: Any) -> Sequence[Datum]:
        """What the service trains on: one datum per row of the batch. Sessions give `tokenizer`,
        `max_length`, `token_weights` and `weight_config` by name; ignore what you do not use."""
        ...

    def calculate_metrics(self, results: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Means and extremes of the rows that training gave, one per step."""
        ...

    def validate_quality(
        self, results: Mapping[str, Any], config: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        """Which targets the results meet."""
        ...

    def sampling_params(self, *args: Any, **options: Any) -> SamplingParams:
        """How to sample, with the adapter's defaults."""
        ...

    def checkpoint_name(self, experiment_id: str, step: int) -> str:
        """Equal for equal arguments, and sorted as the steps are."""
        ...


CALLBACKS = tuple(name for name in vars(LoraAdapter) if not name.startswith("_"))


def load_adapter(name: str) -> LoraAdapter:
    """The adapter at "module:Class" (or "module:object"), a class called without arguments.

    Raises `ConfigError` that names what is missing.
    """
    found = load(name, what="adapter")
    adapter = found() if isinstance(found, type) else found
    missing = [c for c in CALLBACKS if not callable(getattr(adapter, c, None))]
    if missing:
        raise ConfigError(f"adapter {name!r} lacks the callbacks {', '.join(missing)}")
    made: LoraAdapter = adapter
    return made
