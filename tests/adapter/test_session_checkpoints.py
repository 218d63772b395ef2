"""The checkpoints of a session: which is best, what a prune keeps, where a service fails."""

from __future__ import annotations

import math
from typing import Any

import pytest
from desk import ROWS, Desk

from crucible_tinkex.errors import ConfigError, ServiceUnavailableError
from crucible_tinkex.testing import FakeService
from crucible_tinkex.training.adapter import TinkexAdapter, TinkexSession
from crucible_tinkex.training.tinkex.results import Checkpoint

SCORES = (0.5, 0.9, math.nan, 0.7, 0.1)


async def saved(session: TinkexSession, scores: tuple[float, ...] = SCORES) -> list[Checkpoint]:
    return [await session.save_checkpoint(i, metrics={"score": s}) for i, s in enumerate(scores)]


async def test_the_best_is_by_the_metric_in_its_direction(desk: Desk) -> None:
    async with desk.session() as session:
        manager = session.checkpoint_manager
        with pytest.raises(ConfigError, match=r"no checkpoint has a finite 'score'.*nothing"):
            manager.get_best_checkpoint("score")
        made = await saved(session)
        assert manager.list_checkpoints() == session.checkpoints == made
        assert manager.get_best_checkpoint("score", "max").step == 1
        assert manager.get_best_checkpoint("score", "min").step == 4
        assert manager.get_best_checkpoint("score").step == 1
        with pytest.raises(ConfigError, match="'eval/nll'; measured: score"):
            manager.get_best_checkpoint("eval/nll")
        with pytest.raises(ConfigError, match="direction 'up'"):
            manager.get_best_checkpoint("score", "up")  # type: ignore[arg-type]
        sampler = await manager.load_for_sampling(made[1].name)
        assert (await sampler.sample([1, 2], session.adapter.sampling_params(seed=1))).sequences


async def test_a_prune_keeps_the_best_and_the_newest_and_deletes_on_the_service(desk: Desk) -> None:
    async with desk.session() as session:
        made = await saved(session)
        would = await session.checkpoint_manager.prune_checkpoints(2, "score", "max", dry_run=True)
        assert [c.step for c in would] == [0, 2] and session.checkpoints == made
        gone = await session.checkpoint_manager.prune_checkpoints(2, "score", "max")
        assert gone == would
        assert [c.step for c in session.checkpoints] == [1, 3, 4]
        paths = {p for c in session.checkpoints for p in (c.path, c.sampler_path)}
        assert set(desk.backend.checkpoints) == paths
        assert desk.names("checkpoint_pruned") == ["checkpoint_pruned"] * 2
        assert await session.checkpoint_manager.prune_checkpoints(0, "score") == [made[1], made[3]]
        assert session.checkpoints == [made[4]]


async def test_what_cannot_be_pruned_is_left_alone(desk: Desk) -> None:
    async with desk.session() as session:
        assert await session.checkpoint_manager.prune_checkpoints(1, "score") == []
        made = await saved(session)
        with pytest.raises(ConfigError, match="measured: score"):
            await session.checkpoint_manager.prune_checkpoints(1, "eval/nll")
        with pytest.raises(ConfigError, match="keep_count = -1"):
            await session.checkpoint_manager.prune_checkpoints(-1, "score")
        with pytest.raises(ConfigError, match="newest"):
            await session.checkpoint_manager.delete(made[-1])
        with pytest.raises(ConfigError, match="no checkpoint 'other'"):
            await session.checkpoint_manager.delete("other")
        with pytest.raises(ConfigError, match="of this session"):
            await session.checkpoint_manager.delete("tinker://run/weights/other")
        assert session.checkpoints == made
        await session.checkpoint_manager.delete(made[0].name)
        assert session.checkpoints == made[1:]
        assert desk.names("checkpoint_deleted") == ["checkpoint_deleted"]


async def test_the_next_prune_goes_on_where_the_service_failed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk.session() as session:
        made = await saved(session)
        delete, calls = desk.backend.checkpoints.pop, []

        async def flaky(service: Any, path: str) -> None:
            calls.append(path)
            if len(calls) == 2:
                raise ServiceUnavailableError("out of reach")
            delete(path, None)

        monkeypatch.setattr(FakeService, "delete_checkpoint", flaky)
        with pytest.raises(ServiceUnavailableError, match="prune goes on"):
            await session.checkpoint_manager.prune_checkpoints(1, "score")
        assert made[0] not in session.checkpoints
        await session.checkpoint_manager.prune_checkpoints(1, "score")
        kept = {p for c in session.checkpoints for p in (c.path, c.sampler_path)}
        assert set(desk.backend.checkpoints) == kept
        assert desk.names("checkpoint_pruned") == ["checkpoint_pruned"] * 3


def test_the_same_for_plain_scripts(desk: Desk, tokenizer: Any) -> None:
    with TinkexAdapter(desk.connect, tokenizer=tokenizer) as adapter:
        session = adapter.start_session(desk.experiment())
        session.train(ROWS, epochs=3, batch_size=5, checkpoint_every=2)
        manager = session.checkpoint_manager
        best = manager.get_best_checkpoint("train/nll")
        assert [c.step for c in manager.list_checkpoints()] == [2, 4, 6]
        manager.prune_checkpoints(1, "train/nll")
        assert {c.step for c in session.checkpoints} == {best.step, 6}
