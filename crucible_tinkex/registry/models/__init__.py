"""The models of a storage: registered checkpoints with versions, stages, aliases, tags, lineage.

Shared by all sweeps of the storage and by any number of processes. Metadata only: the weights stay
where `checkpoint_path` says.
"""

from crucible_tinkex.registry.models.ensemble import find, parse_threshold
from crucible_tinkex.registry.models.exchange import Imported
from crucible_tinkex.registry.models.records import STAGES, ModelEntry, ModelVersion, model_id
from crucible_tinkex.registry.models.registry import ModelRegistry

__all__ = [
    "STAGES",
    "Imported",
    "ModelEntry",
    "ModelRegistry",
    "ModelVersion",
    "find",
    "model_id",
    "parse_threshold",
]
