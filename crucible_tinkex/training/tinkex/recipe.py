"""How an adapter's session learns: a `Recipe` whose rows become datums by the adapter's callbacks.

The order of rows, the schedule, the loss and the held-out metrics are those of `sft`, so that the
same rows with the same settings give the same numbers in a sweep and here. The original neither
shuffled nor had a seed, and compared sums over batches of unequal size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crucible_tinkex.client.interface import TrainingClient
from crucible_tinkex.config import EvaluationSection, OptimizerSection
from crucible_tinkex.datasets import TokenisedDataset, Tokenizer, batch_indices, epoch_of
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.protocol.wire import Datum, ForwardBackwardOutput
from crucible_tinkex.training.adapter.protocol import LoraAdapter
from crucible_tinkex.training.adapter.rows import as_mapping, completion_of
from crucible_tinkex.training.losses.objective import measured, try_on
from crucible_tinkex.training.losses.registry import Loss, LossRegistry, check_inputs
from crucible_tinkex.training.losses.schemes import check_numbers, has_invalid_citation
from crucible_tinkex.training.recipes.datums import total_weight
from crucible_tinkex.training.recipes.evaluation import evaluate
from crucible_tinkex.training.recipes.recipe import Evaluation, Tell, Update
from crucible_tinkex.training.recipes.schedule import adam_params
from crucible_tinkex.training.tinkex.options import TrainOptions

CITATIONS = "citation_validity"
TRIED_ROWS = 2
PREPARED_ROWS = 20_000
"""Up to so many rows are kept as datums; more are made again when their step comes."""


class AdapterRecipe:
    """A `Recipe`; steps count from 1 within one call of `train`."""

    def __init__(
        self,
        adapter: LoraAdapter,
        rows: Sequence[Any],
        options: TrainOptions,
        *,
        losses: LossRegistry,
        optimizer: OptimizerSection,
        tokenizer: Tokenizer,
        max_length: int,
        seed: int,
        held_out: TokenisedDataset | None,
    ) -> None:
        """Raises `ConfigError` for a loss that there is not."""
        self._adapter = adapter
        self._dataset = rows  # keeps the identities of its rows
        self._options = options
        self._optimizer = optimizer
        self._held_out = held_out
        self._tokenizer = tokenizer
        self._loss = resolved(options, losses)
        self.measures_citations = self._loss.name == CITATIONS or (
            options.token_weights == CITATIONS
        )
        scheme = scheme_of(options, self._loss)
        check_numbers([losses.scheme(scheme)], options.weighing, key="train: weight_config")
        service = self._loss.service == "cross_entropy" and self._loss.custom is None
        self._is_plain = service and scheme == "uniform"
        self._format: dict[str, Any] = {
            "tokenizer": tokenizer,
            "max_length": max_length,
            "token_weights": scheme,
            "weight_config": options.weighing,
        }
        order = [
            index
            for step in range(1, options.steps(len(rows)) + 1)
            for index in batch_indices(
                len(rows), seed=seed, step=step, batch_size=options.step_rows
            )
        ]
        self._prepared = self._checked(rows)
        self._batches = adapter.batch_dataset([rows[i] for i in order], options.step_rows)

    def _checked(self, rows: Sequence[Any]) -> dict[int, Datum]:
        """Every row as a datum, by the row's identity; empty where rows are too many to keep, or do
        not become a datum each. A row that is wrong, or that the loss cannot be given, is found
        here, before anything is spent."""
        prepared: dict[int, Datum] = {}
        for start in range(0, len(rows), PREPARED_ROWS):
            part = rows[start : start + PREPARED_ROWS]
            try:
                made = self._adapter.format_training_data(part, **self._format)
            except ConfigError as error:
                if start:
                    error.with_context(lines_from=start + 1)
                raise
            if made:
                check_inputs(self._loss, made[0])
                try_on(self._loss, made[:TRIED_ROWS], key="train: loss_fn")
            if len(rows) > PREPARED_ROWS or len(made) != len(part):
                continue
            prepared |= zip(map(id, part), made, strict=True)
        return prepared

    def _datums(self, rows: Sequence[Any]) -> list[Datum]:
        found = [self._prepared.get(id(row)) for row in rows]
        whole = [datum for datum in found if datum is not None]
        if len(whole) == len(rows):
            return whole
        return list(self._adapter.format_training_data(rows, **self._format))

    @property
    def total_steps(self) -> int:
        return len(self._batches)

    @property
    def is_evaluating(self) -> bool:
        return self._held_out is not None

    async def update(self, step: int, client: TrainingClient) -> Update:
        rows = self._batches[step - 1]
        batch = self._datums(rows)
        return Update(
            batch,
            adam_params(self._optimizer, step=step, total_steps=self.total_steps),
            total_weight(batch),
            self._loss.service,
            self._options.loss_fn_config,
            accumulate=self._options.accumulate,
            custom=self._loss.custom,
        )

    async def measure(self, update: Update, output: ForwardBackwardOutput) -> Mapping[str, float]:
        return measured(update, output, is_plain=self._is_plain)

    def citation_invalid_rate(self, step: int) -> float:
        """Share of the step's rows that cite what is not among their documents."""
        rows = [as_mapping(row) for row in self._batches[step - 1]]
        return sum(has_invalid_citation(row, completion_of(row)) for row in rows) / len(rows)

    async def evaluate(self, client: TrainingClient, tell: Tell) -> Evaluation:
        if self._held_out is None:
            return Evaluation()
        section = EvaluationSection(generate=self._options.generate)
        return await evaluate(
            client, self._held_out, section, tokenizer=self._tokenizer.name, tell=tell
        )

    def epoch(self, step: int) -> int:
        return epoch_of(max(step, 1), rows=len(self._dataset), batch_size=self._options.step_rows)


def resolved(options: TrainOptions, losses: LossRegistry) -> Loss:
    """What `loss_fn` stands for. Raises `ConfigError`."""
    given = options.loss_fn
    if isinstance(given, str):
        return losses.get(given)
    if isinstance(given, Mapping):
        return Loss("composite", custom=losses.composite(given))
    if callable(given):
        return Loss(getattr(given, "__name__", "custom"), custom=given)
    raise ConfigError(f"train: loss_fn = {given!r} must be a name, {{name: weight}} or a function")


def scheme_of(options: TrainOptions, loss: Loss) -> str:
    """The token-weight scheme that is asked for, by name."""
    if options.token_weights is not None:
        return options.token_weights
    return "uniform" if loss.weights is None else loss.name
