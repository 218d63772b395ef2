"""A trial's weights measured on a file after the fact, on the service where they are.

The rows are read as the trial's own were. Likelihoods come from the sampler of the weights, so that
no training session is opened, and the untrained base can be measured as well. What was measured
before is not measured again; an evaluation that fails leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from crucible_tinkex.client.interface import SamplingClient
from crucible_tinkex.config import EvaluationSection, Experiment
from crucible_tinkex.config.problems import explain
from crucible_tinkex.datasets import Rows, files_hash, open_rows, reading, tokenise
from crucible_tinkex.errors import ConfigError, ServiceError
from crucible_tinkex.names import SweepPaths, digest
from crucible_tinkex.protocol.wire import Datum, ForwardBackwardOutput, TensorData
from crucible_tinkex.registry import CheckpointRecord, TrialRecord
from crucible_tinkex.scoring import Scoring
from crucible_tinkex.scoring.scorers import FUNCTION
from crucible_tinkex.storage import make_folder
from crucible_tinkex.sweep.results.leaderboard import Objective
from crucible_tinkex.sweep.results.measured import measured
from crucible_tinkex.sweep.results.trained import chosen_trial, counting_checkpoint
from crucible_tinkex.sweep.results.views.summary import read_state
from crucible_tinkex.training.recipes.answering import check_judged
from crucible_tinkex.training.recipes.evaluation import bounded, evaluate
from crucible_tinkex.training.recipes.recipe import Evaluation, Tell
from crucible_tinkex.user_code import code_hash
from crucible_tinkex.weights.chat import tokenizer_of
from crucible_tinkex.weights.evaluations import AfterEvaluation, load, store
from crucible_tinkex.weights.service import RunEndedError, blocking, sampling_path, service_of

SCORED_AT_ONCE = 32
"""Rows whose likelihood is asked for at the same time."""


def evaluate_trial(
    paths: SweepPaths,
    trial: str | None,
    data: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    again: bool = False,
    tell: Tell = lambda done, of: None,
) -> AfterEvaluation:
    """Measure a trial (id, name or number; by default the best) on `data`; blocks.

    `settings`: keys of `[evaluation]` in place of the experiment's own. `again`: also where it was
    measured before. Raises `ConfigError` or `DataError` before a service is asked, then
    `ServiceError` or `StorageError`.
    """
    subject = _Subject.find(paths, trial)
    section = _section(subject.experiment.evaluation, settings or {})
    rows = open_rows([str(data)])
    check_judged(section, rows.formats, said=settings or {})
    key = _key(subject, section, rows)
    known = None if again else load(paths, key)
    if known is not None:
        return known
    make_folder(paths.evaluations_after)  # what cannot be kept is refused before it is measured
    try:
        found = _found(subject, section, rows, tell)
    except ServiceError as error:
        where = {"trial": subject.trial.run_name, "checkpoint": subject.path}
        raise error.with_context(**where) from None
    whole = AfterEvaluation(
        key,
        subject.trial.trial_id,
        subject.trial.run_name,
        subject.step,
        subject.path,
        str(data),
        files_hash(rows),
        section.model_dump(mode="json"),
        measured(found.metrics, found.examples, section),
        found.examples,
    )
    store(paths, whole)
    return whole


@dataclass(frozen=True)
class _Subject:
    """Whose weights are measured."""

    paths: SweepPaths
    experiment: Experiment
    trial: TrialRecord
    checkpoint: CheckpointRecord | None
    """None: the untrained base."""

    @classmethod
    def find(cls, paths: SweepPaths, name: str | None) -> _Subject:
        state = read_state(paths)
        trial = chosen_trial(state, name)
        whole = Experiment.loaded(state.meta["experiment"], folder=paths.root)
        checkpoint = None if trial.reference else counting_checkpoint(trial, Objective.of(state))
        return cls(paths, whole.configured(trial.values), trial, checkpoint)

    @property
    def step(self) -> int:
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def path(self) -> str:
        return self.checkpoint.path if self.checkpoint else self.experiment.model.base


def _section(own: EvaluationSection, settings: Mapping[str, Any]) -> EvaluationSection:
    """All rows count, unless it is said otherwise. Raises `ConfigError`."""
    kept = {**dict(own), "max_rows": None}
    if "metrics" in settings:
        kept.pop("right_by")  # it names one of the metrics that are replaced
    try:
        found = EvaluationSection.model_validate(
            {**kept, **settings}, context={"folder": Path.cwd()}
        )
    except ValidationError as error:
        raise ConfigError(
            explain(error, source="evaluate", model=EvaluationSection, section="evaluation")
        ) from None
    Scoring(found)  # refuses a function or schema that is none
    return found


def _key(subject: _Subject, section: EvaluationSection, rows: Rows) -> str:
    experiment = subject.experiment
    read = reading(
        format=rows.formats,
        max_length=experiment.train.max_length,
        tokenizer=experiment.model.tokenizer,
        train_on=experiment.data.train_on,
        too_long=experiment.data.too_long,
    )
    functions = [t.function for t in section.scores if t.function is not None]
    content = {
        "weights": [experiment.service.base_url, experiment.service.dtype, subject.path],
        "rows": [files_hash(rows), read],
        "evaluation": section.model_dump(mode="json"),
        "functions": [code_hash(name, what=FUNCTION) for name in functions],
    }
    return digest(content, 16)


def _found(subject: _Subject, section: EvaluationSection, rows: Rows, tell: Tell) -> Evaluation:
    """Begins again on a server of its own where that of a run ended with it."""
    try:
        return blocking(_evaluated(subject, section, rows, tell))
    except RunEndedError:
        return blocking(_evaluated(subject, section, rows, tell))


async def _evaluated(
    subject: _Subject, section: EvaluationSection, rows: Rows, tell: Tell
) -> Evaluation:
    experiment = subject.experiment
    async with service_of(subject.paths, experiment) as service:
        tokenizer = await tokenizer_of(service, experiment)
        data = await asyncio.to_thread(
            tokenise,
            rows,
            tokenizer,
            max_length=experiment.train.max_length,
            train_on=experiment.data.train_on,
            too_long=experiment.data.too_long,
            keep_text=section.has_functions,
        )
        if subject.checkpoint is None:
            sampler = await service.sampler(base_model=experiment.model.base)
        else:
            path = await sampling_path(service, subject.checkpoint)
            sampler = await service.sampler(model_path=path)
        weights = SampledWeights(sampler)
        return await evaluate(weights, data, section, tokenizer=tokenizer.name, tell=tell)


class SampledWeights:
    """Fixed weights as an evaluation needs them."""

    def __init__(self, sampler: SamplingClient) -> None:
        self._sampler = sampler
        self._slots = asyncio.Semaphore(SCORED_AT_ONCE)

    async def sampler(self) -> SamplingClient:
        return self._sampler

    async def forward(self, data: Sequence[Datum]) -> ForwardBackwardOutput:
        """The logprobs of the rows' targets, and nothing else."""
        outputs = await bounded([partial(self._scored, datum) for datum in data])
        return ForwardBackwardOutput(
            loss_fn_output_type="ArrayRecord", loss_fn_outputs=outputs, metrics={}
        )

    async def _scored(self, datum: Datum) -> dict[str, TensorData]:
        targets = datum.loss_fn_inputs["target_tokens"].data
        tokens = [*datum.model_input.tokens(), int(targets[-1])]
        async with self._slots:
            found = await self._sampler.compute_logprobs(tokens)
        logprobs = [float(value or 0.0) for value in found[1:]]
        return {"logprobs": TensorData(data=logprobs, dtype="float32", shape=[len(logprobs)])}
