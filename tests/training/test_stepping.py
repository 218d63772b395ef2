"""The training loop that a sweep's trial and the adapter's session share."""

from __future__ import annotations

import pytest
from trial_bench import DATA, Bench, make_plan

from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import batch_indices
from crucible_tinkex.testing import batch_digest
from crucible_tinkex.training.attempt.stepping import portions
from crucible_tinkex.training.recipes.datums import datum
from crucible_tinkex.training.recipes.sft import SupervisedRecipe


async def test_accumulated_portions_learn_what_the_whole_batch_does() -> None:
    whole, parts = Bench(batch_size=4), Bench(batch_size=1, accumulate=4)
    await whole.run()
    await parts.run()
    calls = [c for c in parts.backend.calls if c in ("forward_backward", "optim_step")]
    assert calls == [*["forward_backward"] * 4, "optim_step"] * 10
    assert parts.trial.results[10] == pytest.approx(whole.trial.results[10])
    assert parts.plan.trial_id == whole.plan.trial_id


async def test_the_rows_of_a_step_are_sent_in_order_portion_by_portion() -> None:
    bench = Bench(batch_size=2, accumulate=2, max_steps=1)
    object.__setattr__(bench.plan, "total_steps", 1)
    await bench.run()
    rows = batch_indices(20, seed=0, step=1, batch_size=4)
    sent = [e.batch for e in bench.backend.ledger if e.operation == "forward_backward"]
    batch = [datum(DATA.train, i) for i in rows]
    assert sent == [batch_digest(batch[:2]), batch_digest(batch[2:])]


async def test_portions_are_never_empty() -> None:
    recipe = SupervisedRecipe(make_plan(batch_size=1, accumulate=3), DATA)
    update = await recipe.update(1, None)  # type: ignore[arg-type]
    assert [len(part) for part in portions(update)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("train", "same"),
    [
        ({"batch_size": 2, "accumulate": 4}, True),
        ({"batch_size": 8, "accumulate": 2}, False),
        ({"batch_size": 4}, False),
    ],
)
def test_accumulation_is_identity_only_where_it_changes_what_a_step_learns(
    train: dict[str, int], same: bool
) -> None:
    def settings(train: dict[str, int]) -> object:
        declared = {"name": "s", "model": {"base": "nano"}, "data": {"train": "x"}, "train": train}
        return Experiment.build(declared).trial_settings(total_steps=5)

    assert (settings(train) == settings({"batch_size": 8})) is same


def test_steps_are_counted_in_what_a_step_learns_from() -> None:
    declared = {"name": "s", "model": {"base": "nano"}, "data": {"train": "x"}}
    train = Experiment.build({**declared, "train": {"batch_size": 4, "accumulate": 2}}).train
    assert (train.step_rows, train.steps(80)) == (8, 10)
