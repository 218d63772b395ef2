"""The checkpoints of a real sweep: listed, pruned in two phases, pinned, verified, copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import in_process
import pytest
from nano_sweep import make_experiment

import crucible_tinkex as ct
from crucible_tinkex.errors import ConfigError, StorageError, SweepBusyError
from crucible_tinkex.protocol.wire import LoraConfig
from crucible_tinkex.registry.upkeep import Upkeep
from crucible_tinkex.storage import Lock
from crucible_tinkex.sweep.keeping.retention import Retention
from crucible_tinkex.sweep.results.views.kept import checkpoint_line
from crucible_tinkex.sweep.results.views.summary import read_state
from crucible_tinkex.testing import FakeBackend, FakeService
from crucible_tinkex.weights.copies import Copies


@pytest.fixture
def mine(sweep: ct.Sweep, tmp_path: Path) -> ct.Sweep:
    """A copy that may be changed."""
    shutil.copytree(sweep.paths.root.parent.parent, tmp_path / "mine")
    return ct.open_sweep("small", storage=str(tmp_path / "mine" / "runs"))


def on_disk(sweep: ct.Sweep) -> set[str]:
    return {p.name for p in (sweep.paths.service / "checkpoints").glob("*/*/[!.]*")}


def names(paths: list[str]) -> set[str]:
    return {p.rsplit("/", 1)[1] for p in paths}


def test_they_are_listed_and_the_best_is_found(sweep: ct.Sweep) -> None:
    manager = sweep.checkpoints
    found = manager.list_checkpoints()
    assert len(found) == 8  # of two trials: steps 2, 4, 6, and 6 for sampling
    assert names([c.path for c in found]) == on_disk(sweep)
    best = manager.get_best_checkpoint()
    losses = [c.record.metrics["eval/nll"] for c in found]
    assert best.record.metrics["eval/nll"] == min(losses)
    worst = manager.get_best_checkpoint("eval/nll", "max", kind="state")
    assert worst.record.metrics["eval/nll"] == max(losses) and worst.record.kind == "state"
    assert len(manager.list_checkpoints(best.trial, kind="sampler")) == 1
    with pytest.raises(ConfigError, match=r"no checkpoint has a finite 'eval/none'.*eval/nll"):
        manager.get_best_checkpoint("eval/none", "min")
    with pytest.raises(ConfigError, match="which way"):
        manager.get_best_checkpoint("loss")


def test_pruning_deletes_on_the_service_and_keeps_what_must_stay(mine: ct.Sweep) -> None:
    manager = mine.checkpoints
    pinned = manager.list_checkpoints(kind="state")[0].path
    manager.pin(pinned)
    before = on_disk(mine)
    shown = manager.prune_checkpoints(1, dry_run=True)
    assert on_disk(mine) == before and len(manager.list_checkpoints()) == 8
    done = manager.prune_checkpoints(1)
    assert {c.path for c in shown.deleted} == {c.path for c in done.deleted} != set()
    left = [c.path for c in manager.list_checkpoints()]
    assert on_disk(mine) == names(left) == names([c.path for c in done.kept])
    registered = ct.ModelRegistry.open(mine.paths.root.parent).get_model("digits")
    assert {pinned, registered.checkpoint_path} <= set(left)
    state = read_state(mine.paths)
    assert state.complete and state.state == "done"  # it has not become another run
    assert all(t.step == 6 for t in state.trials.values() if not t.reference)
    assert not any(t.tombstones for t in state.trials.values())
    assert [v.wrong for v in manager.verify()] == [None] * len(left)
    best = mine.best()
    assert best is not None and best.export(mine.paths.root / "still").files


def test_a_sweep_keeps_what_its_file_says(tmp_path: Path) -> None:
    rules = {"keep_best": 1, "keep_last": 0, "ttl_days": 2.0}
    models = {"auto_register": "kept"}
    done = ct.run(make_experiment(tmp_path / "kept", checkpoints=rules, models=models))
    left = [c.path for c in done.checkpoints.list_checkpoints()]
    assert on_disk(done) == names(left) and 1 <= len(left) < 8
    state = read_state(done.paths)
    assert state.deleted == 8 - len(left) and not state.buried
    assert checkpoint_line(state) == f"checkpoints: {len(left)} kept, {state.deleted} deleted"
    assert [v.wrong for v in done.checkpoints.verify()] == [None] * len(left)
    best = done.best()
    assert best is not None and best.export(tmp_path / "adapter").files
    registered = ct.ModelRegistry.open(done.paths.root.parent).get_model("kept")
    assert registered.checkpoint_path in left
    # Asked for no more than that, the sweep that has ended expires the rest on the service.
    ct.run(make_experiment(tmp_path / "kept", checkpoints={"keep_last": 2, "ttl_days": 2.0}))
    expiring = [v for v in done.checkpoints.verify() if v.expires]
    assert not any(v.wrong for v in expiring)
    assert len(expiring) == sum(e.at is not None for e in read_state(done.paths).expiries.values())


def test_a_prune_that_broke_off_is_finished_by_the_next(mine: ct.Sweep) -> None:
    manager = mine.checkpoints
    victim = next(c for c in manager.list_checkpoints(kind="state") if not c.protected)
    with Upkeep(mine.paths) as upkeep:  # a process that died after its tombstone
        record = {"type": "tombstone", "trial_id": victim.record.trial_id, "path": victim.path}
        upkeep.write({**record, "reason": "pruned"})
    name = victim.path.rsplit("/", 1)[1]
    assert victim.path not in [c.path for c in manager.list_checkpoints()]
    assert name in on_disk(mine)
    done = manager.prune_checkpoints(rules=Retention(every=1))
    assert done.deleted == [] and name not in on_disk(mine)


def test_what_is_gone_from_the_service_is_told(mine: ct.Sweep) -> None:
    manager = mine.checkpoints
    [folder, *_] = (mine.paths.service / "checkpoints").glob("*/weights/*")
    shutil.rmtree(folder)
    seen = manager.verify(manager.list_checkpoints())
    assert next(v.checkpoint.path for v in seen if not v.there).endswith(folder.name)
    assert all(v.size_bytes for v in seen if v.there)
    wrong = {v.checkpoint.path.rsplit("/", 1)[1]: v.wrong for v in seen}
    assert wrong.pop(folder.name) == "the service does not have it"
    assert set(wrong.values()) == {None}


def test_a_checkpoint_may_expire_unless_it_must_stay(mine: ct.Sweep) -> None:
    manager = mine.checkpoints
    free = next(c for c in manager.list_checkpoints() if not c.protected)
    manager.set_ttl(free.path, 3600)
    [found] = [v for v in manager.verify() if v.expires]
    assert found.checkpoint.path == free.path and found.wrong is None
    registered = ct.ModelRegistry.open(mine.paths.root.parent).get_model("digits")
    with pytest.raises(ConfigError, match="must stay: model digits:1"):
        manager.set_ttl(registered.checkpoint_path, 3600)


def test_a_sweep_that_runs_can_be_looked_at_only(mine: ct.Sweep) -> None:
    manager = mine.checkpoints
    [first, *_] = manager.list_checkpoints()
    lock = Lock(mine.paths.lock)
    try:
        assert len(manager.list_checkpoints()) == 8
        for change in (
            lambda: manager.pin(first.path),
            lambda: manager.prune_checkpoints(0),
        ):
            with pytest.raises(SweepBusyError, match="in use by"):
                change()
    finally:
        lock.close()
    assert len(on_disk(mine)) == 8


def test_wrong_requests_change_nothing(mine: ct.Sweep) -> None:
    manager = mine.checkpoints
    requests: list[tuple[Callable[[], object], str]] = [
        (lambda: manager.pin("tinker://a/weights/b"), "no checkpoint"),
        (lambda: manager.prune_checkpoints(), "one of keep_count and rules"),
        (lambda: manager.prune_checkpoints(-1), "0 or more"),
        (lambda: manager.list_checkpoints("nobody"), "no trial"),
        (lambda: ct.CheckpointManager.open("none", storage="/nowhere"), "no sweep"),
    ]
    for request, told in requests:
        with pytest.raises(ConfigError, match=told):
            request()
    assert len(manager.list_checkpoints()) == len(on_disk(mine)) == 8


async def test_saving_by_hand_is_announced_saved_and_committed(mine: ct.Sweep) -> None:
    manager = mine.checkpoints
    service = FakeService(FakeBackend())
    training = await service.create_training(base_model="nano", lora=LoraConfig(rank=2))
    trial = manager.list_checkpoints()[0].trial
    saved = await manager.save(training, trial, 9, {"eval/nll": 1e-9})
    best = manager.get_best_checkpoint(kind="state")
    assert best.path == saved.path and best.record.step == 9
    assert not read_state(mine.paths).trial(saved.trial_id).intents
    again = await manager.load_for_training(service)
    assert again.model_id != training.model_id
    for_sampling = await manager.save(training, trial, 9, {"eval/nll": 1e-9}, kind="sampler")
    assert manager.get_best_checkpoint().path == for_sampling.path
    await manager.load_for_sampling(service)
    with pytest.raises(ConfigError, match="at least 1 step"):
        await manager.save(training, trial, 0)


def test_copies_are_whole_verified_and_need_no_service(sweep: ct.Sweep, tmp_path: Path) -> None:
    manager = sweep.checkpoints
    best = manager.get_best_checkpoint(kind="sampler")
    made = manager.copy(best.path, tmp_path / "copies")
    assert manager.copy(best.path, tmp_path / "copies") == made
    copies = Copies(tmp_path / "copies", "small")
    assert copies.all() == [made] and copies.verify(made) == []
    copies.fetch(made, tmp_path / "back")
    ours = sweep.best()
    assert ours is not None
    theirs = ours.export(tmp_path / "direct").folder / "adapter_model.safetensors"
    assert (tmp_path / "back" / "adapter_model.safetensors").read_bytes() == theirs.read_bytes()
    damaged = tmp_path / "copies" / made.prefix / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    [wrong] = copies.verify(made)
    assert "is damaged" in wrong
    with pytest.raises(StorageError, match="copy it again"):
        copies.fetch(made, tmp_path / "again")
    assert manager.copy(best.path, tmp_path / "copies") == made  # made whole again
    assert copies.verify(made) == []
    copies.delete(made)
    assert copies.all() == [] and copies.objects.listing() == []


def test_the_commands(mine: ct.Sweep) -> None:
    storage = str(mine.paths.root.parent)

    def crucible(*arguments: str, code: int = 0) -> str:
        done = in_process.crucible("checkpoints", *arguments, "--storage", storage)
        assert done.returncode == code, done.stderr
        return done.stderr if code == 2 else done.stdout

    listed = json.loads(crucible("list", "small", "--json"))
    assert len(listed) == 8
    path = crucible("best", "small").strip()
    assert path in {c["path"] for c in listed}
    victim = next(c["path"] for c in listed if c["step"] == 2)
    crucible("pin", "small", victim)
    told = crucible("prune", "small", "--keep-last", "0")
    assert "would delete" in told and "--yes" in told and len(on_disk(mine)) == 8
    assert "eval/nll" in crucible("list", "small").splitlines()[1]  # what the sweep ranks by
    nothing = crucible("prune", "small", "--keep-best", "9")
    assert nothing == "would delete 0 and keep 8; do it: --yes\n"
    done = json.loads(crucible("prune", "small", "--keep-last", "0", "--yes", "--json"))
    assert done["done"] and len(on_disk(mine)) == len(done["kept"]) < 8
    assert victim in {c["path"] for c in done["kept"]}
    place = str(mine.paths.root / "copies")
    assert crucible("copy", "small", "--to", place).startswith(place)
    assert set(json.loads(crucible("verify", "small", "--copies", place, "--json")).values()) == {
        None
    }
    nowhere = str(mine.paths.root / "copeis")  # misspelt: not "no damage"
    assert "no folder" in crucible("verify", "small", "--copies", nowhere, code=2)
    assert not Path(nowhere).exists()
    assert "no copies of a sweep 'smal'" in crucible("verify", "smal", "--copies", place, code=2)
    shutil.rmtree(mine.paths.service / "checkpoints")
    table = crucible("list", "small", "--kind", "sampler", "--check")
    assert "tinker://" in table and "the service does not have it" in table
    assert "does not have it" in crucible("verify", "small", code=1)
    assert "no checkpoint" in crucible("pin", "small", "tinker://a/weights/b", code=2)
