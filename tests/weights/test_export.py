"""An exported adapter, and a merged model, compute what the service computes."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from in_process import crucible
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import enable_progress_bar, is_progress_bar_enabled

import crucible_tinkex as ct
from crucible_tinkex.errors import ConfigError, DamagedCheckpointError, StorageError
from crucible_tinkex.server import bases
from crucible_tinkex.sweep.results.trained import Trained
from crucible_tinkex.weights.export import export_trial
from crucible_tinkex.weights.service import sampling_path, service_of

# peft warns that our base's output layer is tied to its embedding; the adapter is on one of them
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
TOKENS = [*b"017>710 and 023>"]


def logprobs(model: Any) -> np.ndarray:
    with torch.no_grad():
        found = model(torch.tensor([TOKENS])).logits[0].log_softmax(-1)
    return found[:-1].gather(1, torch.tensor(TOKENS[1:])[:, None])[:, 0].numpy()


def nano() -> Any:
    return bases.load_model(bases.ensure_base("nano"), torch.float32)


@pytest.fixture(scope="module")
def theirs(sweep: ct.Sweep) -> np.ndarray:
    """What the service says of the best trial's weights."""
    trained = Trained.find(sweep.paths)

    async def scored() -> list[float | None]:
        async with service_of(sweep.paths, trained.experiment) as service:
            sampler = await service.sampler(
                model_path=await sampling_path(service, trained.checkpoint)
            )
            return await sampler.compute_logprobs(TOKENS)

    return np.array(asyncio.run(scored())[1:], dtype="f4")


def test_peft_gives_the_logits_of_the_service(
    sweep: ct.Sweep, theirs: np.ndarray, tmp_path: Path
) -> None:
    best = sweep.best()
    assert best is not None
    done = best.export(tmp_path / "new" / "adapter")
    assert (done.trial_id, done.step, done.merged) == (best["id"], 6, False)
    assert done.checkpoint_path == best["samplers"][0]["path"]
    assert sorted(done.files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert {(done.folder / name).stat().st_mode & 0o777 for name in done.files} == {0o644}
    plain = logprobs(nano())
    loaded = peft.PeftModel.from_pretrained(nano(), str(done.folder))
    np.testing.assert_allclose(logprobs(loaded), theirs, atol=2e-5)
    assert np.abs(theirs - plain).max() > 0.1
    assert [p.name for p in done.folder.parent.iterdir()] == ["adapter"]  # nothing beside it


def test_transformers_gives_them_from_the_merged_model(
    sweep: ct.Sweep, theirs: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    enable_progress_bar()
    capfd.readouterr()
    done = export_trial(sweep.paths, None, tmp_path / "whole", merged=True)
    assert capfd.readouterr() == ("", ""), "stderr is no terminal"
    assert is_progress_bar_enabled()
    model = AutoModelForCausalLM.from_pretrained(done.folder, dtype=torch.float32)
    np.testing.assert_allclose(logprobs(model), theirs, atol=2e-5)
    tokenizer = AutoTokenizer.from_pretrained(done.folder)
    assert tokenizer("017>")["input_ids"] == [*b"017>"]


def test_a_folder_that_holds_something_is_left_alone(sweep: ct.Sweep, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "adapter_config.json").write_text("mine too")
    with pytest.raises(ConfigError, match=r"is not empty.*--force"):
        export_trial(sweep.paths, None, tmp_path)
    assert (tmp_path / "adapter_config.json").read_text() == "mine too"
    export_trial(sweep.paths, None, tmp_path, force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    with pytest.raises(ConfigError, match="is a file"):
        export_trial(sweep.paths, None, tmp_path / "notes.txt")


def test_any_trial_can_be_named(sweep: ct.Sweep, tmp_path: Path) -> None:
    for trial in sweep.status()["trials"]:
        if trial["reference"]:
            with pytest.raises(ConfigError, match="untrained base model"):
                export_trial(sweep.paths, trial["name"], tmp_path / "reference")
            continue
        done = export_trial(sweep.paths, trial["name"], tmp_path / trial["id"])
        config = json.loads((done.folder / "adapter_config.json").read_text())
        assert config["r"] == trial["config"]["lora.rank"]
    with pytest.raises(ConfigError, match="no trial 'nobody'"):
        export_trial(sweep.paths, "nobody", tmp_path / "nobody")
    assert not (tmp_path / "nobody").exists()


@pytest.fixture
def spoilt(sweep: ct.Sweep) -> Iterator[Path]:
    """The adapter's file of the best trial, to be damaged."""
    run, kind, name = Trained.find(sweep.paths).checkpoint.path.removeprefix("tinker://").split("/")
    folder = sweep.paths.service / "checkpoints" / run.replace(":", "+") / kind / name
    file = folder / "adapter.safetensors"
    kept = file.read_bytes()
    yield file
    folder.mkdir(exist_ok=True)
    file.write_bytes(kept)


def test_what_is_damaged_or_gone_is_told_and_leaves_nothing(
    sweep: ct.Sweep, spoilt: Path, tmp_path: Path
) -> None:
    spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedCheckpointError, match="it is not what was saved"):
        export_trial(sweep.paths, None, tmp_path / "x")
    aside = spoilt.parent.rename(spoilt.parent.with_name("aside"))
    try:
        with pytest.raises(StorageError, match="is gone"):
            export_trial(sweep.paths, None, tmp_path / "x")
    finally:
        aside.rename(spoilt.parent)
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_does_not_fit_is_refused(sweep: ct.Sweep, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither known"):
        export_trial(sweep.paths, None, tmp_path / "x", merged=True, base="unknown")
    assert list(tmp_path.iterdir()) == []


def test_the_command(sweep: ct.Sweep, storage: Path, tmp_path: Path) -> None:
    command = ("export", "small", "--to", "out", "--storage", str(storage))

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return crucible(*command, *more, folder=tmp_path)

    first = run("--json")
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    best = sweep.best()
    assert found["step"] == 6 and best is not None and found["trial"] == best["name"]
    again = run()
    assert again.returncode == 2 and "--force" in again.stderr
    forced = run("--force")
    assert forced.returncode == 0 and f"adapter of trial {best['name']}, step 6" in forced.stdout
    useless = run("--force", "--base", "x")
    assert useless.returncode == 2 and "--base goes with --merged" in useless.stderr
