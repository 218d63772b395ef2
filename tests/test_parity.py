"""What the seed names is there under its name, with its defaults; the table of it is true."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import crucible_tinkex as ct
from crucible_tinkex import bench, errors
from crucible_tinkex.config.sweep.quality import SEED_TARGETS, TRAINING_TARGETS
from crucible_tinkex.registry.models import ModelEntry
from crucible_tinkex.scoring.antagonist import Thresholds
from crucible_tinkex.telemetry.bridge.catalogue import CATALOGUE, stored_kinds
from crucible_tinkex.training import harness
from crucible_tinkex.training.adapter import AdapterConfig, BlockingSession, TinkexSession
from crucible_tinkex.training.adapter.protocol import CALLBACKS
from crucible_tinkex.training.losses import gradient_hooks
from crucible_tinkex.training.losses.registry import default_losses
from crucible_tinkex.training.tinkex.options import RecoveryPolicy, TrainOptions
from crucible_tinkex.training.tinkex.states import State

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "parity.md"
ROWS = 42
"""Systems of the seed."""
EXTENDED = ("start_session", "train", "evaluate", "infer", "save_checkpoint", "load_checkpoint")
SESSION = (
    *("experiment_id", "config", "status", "checkpoints", "metrics", "started_at"),
    *("forward_backward", "optim_step", "save_checkpoint", "create_sampler"),
)


def default(function: Callable[..., Any], name: str) -> Any:
    return inspect.signature(function).parameters[name].default


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CALLBACKS, *EXTENDED])
def test_the_adapter_has_the_callbacks_and_the_extended_interface(name: str) -> None:
    assert callable(getattr(ct.TinkexAdapter, name))


@pytest.mark.parametrize("name", SESSION)
def test_a_session_has_its_fields_and_calls(name: str) -> None:
    session = inspect.getsource(TinkexSession)
    assert hasattr(TinkexSession, name) or f"self.{name}" in session


def test_the_states_of_a_session_are_the_seeds() -> None:
    states = "initializing ready training evaluating completed failed"
    assert [*State.__args__] == states.split()  # type: ignore[attr-defined]


def test_blocking_sessions_do_all_that_others_do() -> None:
    own = {name for name in vars(TinkexSession) if not name.startswith("_")}
    assert own - {*vars(BlockingSession)} <= {"open", "create_sampler"}


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (ct.CheckpointManager.list_checkpoints, "self"),
        (ct.CheckpointManager.get_best_checkpoint, "self metric direction"),
        (ct.CheckpointManager.load_for_sampling, "self"),
        (ct.CheckpointManager.prune_checkpoints, "self keep_count metric"),
        (ct.ModelRegistry.register_model, "self name metadata"),
        (ct.ModelRegistry.get_model, "self name"),
        (ct.ModelRegistry.list_models, "self"),
        (ct.ModelRegistry.find_for_ensemble, "sort_by direction top_n tags base thresholds"),
        (ct.Telemetry.query, "experiment_id event_type from_ to"),
        (harness.register_training_step, "plan"),
        (harness.Plan.add_step, "self name function"),
        (bench.analyze, "tests visualize"),
        (errors.wrap, "error context"),
    ],
)
def test_functions_take_what_the_seed_gives(function: Any, parameters: str) -> None:
    assert set(parameters.split()) <= set(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    "event",
    [
        *("session_start", "session_end", "checkpoint_saved", "sampler_created"),
        *(f"forward_backward_{end}" for end in ("start", "stop", "exception")),
        *(f"optim_step_{end}" for end in ("start", "stop", "exception")),
        *(f"sample_{end}" for end in ("start", "stop", "exception")),
        *(f"save_weights_{end}" for end in ("start", "stop", "exception")),
        *("evaluation_complete", "stage_start", "stage_stop", "stage_error"),
    ],
)
def test_the_catalogue_has_the_seeds_events(event: str) -> None:
    assert event in CATALOGUE


# --- defaults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (default(ct.TinkexAdapter.sampling_params, "temperature"), 0.7),
        (default(ct.TinkexAdapter.sampling_params, "top_p"), 0.95),
        (default(ct.TinkexAdapter.sampling_params, "max_tokens"), 512),
        (TrainOptions().steps(80), 10),
        (TrainOptions().batch_size, 8),
        (TrainOptions().checkpoint_every, 100),
        (TrainOptions().loss_fn, "cross_entropy"),
        (AdapterConfig().base_model, "meta-llama/Llama-3.1-8B-Instruct"),
        (AdapterConfig().lora_config.rank, 16),
        (default(ct.ModelRegistry.find_for_ensemble, "top_n"), 5),
        (RecoveryPolicy(), RecoveryPolicy(False, 3, 5.0, 60.0, "latest", True)),
        ((gradient_hooks.VANISHING, gradient_hooks.EXPLODING), (1e-7, 1e3)),
        (Thresholds(), Thresholds(0.55, 0.65, 0.5, 0.2)),
        ([*SEED_TARGETS.values()], [0.95, 0.95, 0.5, 0.45]),
        ([*TRAINING_TARGETS.values()], [0.95, 0.0, 500]),
        (stored_kinds("session"), ("session_start", "session_end")),
        (stored_kinds("forward_backward_stop"), ("training_step",)),
    ],
)
def test_numbers_are_those_of_the_seed(found: Any, expected: Any) -> None:
    assert found == expected


def test_the_keys_of_a_model_and_the_losses_are_the_seeds() -> None:
    keys = "experiment_id checkpoint_name checkpoint_path base_model lora_rank metrics tags"
    assert set(keys.split()) <= set(ModelEntry.model_fields)
    names = "cross_entropy importance_sampling ppo cispo dro citation_validity"
    assert set(names.split()) <= set(default_losses().names())


# --- the table -----------------------------------------------------------------------------------


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_table_has_a_row_for_each_system() -> None:
    assert [int(row[0]) for row in rows()] == list(range(1, ROWS + 1))
    assert all(len(row) == 5 and all(row) for row in rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_files_that_the_table_names_are_there(row: list[str]) -> None:
    files = [f for cell in row[2:4] for f in re.findall(r"`([\w./-]+(?:\.py|\.toml|/))`", cell)]
    everything = [p for top in ("crucible_tinkex", "tests") for p in (ROOT / top).rglob("*")]
    for file in files:
        place = Path(file).parts
        assert any(p.parts[-len(place) :] == place for p in everything), file
