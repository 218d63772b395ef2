"""The experiment file: one module a section, and what can be said of a whole declaration."""

from crucible_tinkex.config.axes import (
    AXIS_SECTIONS,
    Axis,
    AxisRange,
    AxisValue,
    axis_keys,
    check_axes,
    is_integer,
)
from crucible_tinkex.config.experiment import Experiment, parse_assignment
from crucible_tinkex.config.section import Section
from crucible_tinkex.config.sweep.budget import BudgetSection, budget_text, parse_budget
from crucible_tinkex.config.sweep.checkpoints import CheckpointsSection
from crucible_tinkex.config.sweep.quality import QualitySection, QualityTarget
from crucible_tinkex.config.sweep.run import RunSection
from crucible_tinkex.config.sweep.search import SearchSection, StoppingSection
from crucible_tinkex.config.trial.data import DataSection
from crucible_tinkex.config.trial.evaluation import EvaluationSection, ScoreTable
from crucible_tinkex.config.trial.model import NOT_APPLIED, LoraSection, ModelSection
from crucible_tinkex.config.trial.service import EMBEDDED, ServiceSection
from crucible_tinkex.config.trial.train import OptimizerSection, TrainSection

__all__ = [  # noqa: RUF022  (in groups)
    # the whole
    "Experiment",
    "parse_assignment",
    "budget_text",
    "parse_budget",
    # sections
    "Section",
    "BudgetSection",
    "CheckpointsSection",
    "DataSection",
    "EvaluationSection",
    "LoraSection",
    "ModelSection",
    "OptimizerSection",
    "QualitySection",
    "QualityTarget",
    "RunSection",
    "ScoreTable",
    "SearchSection",
    "ServiceSection",
    "StoppingSection",
    "TrainSection",
    # axes
    "AXIS_SECTIONS",
    "Axis",
    "AxisRange",
    "AxisValue",
    "axis_keys",
    "check_axes",
    "is_integer",
    # words
    "EMBEDDED",
    "NOT_APPLIED",
]
