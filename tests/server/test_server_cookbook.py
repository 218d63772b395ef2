"""The public `tinker-cookbook`, unchanged, against our server.

Proves that programs which others wrote for the official service run here as they are: each recipe
is started with `python -m tinker_cookbook.recipes...` in an environment of its own, and only its
documented settings are given. The hub is out of reach, so what a recipe would fetch from it lies
in the working folder under the same name: the base (`meta-llama/Llama-3.2-1B`, here our tiny one)
and the data. Needs a package index once, as `test_server_sdk_old` does (30 MB).
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sdk_server import Served, client_environment, cookbook_python, served

from crucible_tinkex.server.bases import nano

VERSION = "0.6.1"
BASE = "meta-llama/Llama-3.2-1B"
_DOWNLOAD = """
import sys
import tinker
from tinker_cookbook import weights
training = tinker.ServiceClient().create_training_client_from_state(sys.argv[1])
path = training.save_weights_external("final").result().path
weights.download(tinker_path=path, output_dir="downloaded")
weights.build_lora_adapter(base_model=sys.argv[2], adapter_path="downloaded", output_path="lora")
"""
_MERGE = """
import sys
import tinker
from tinker_cookbook import weights
made = {"base_model": sys.argv[1], "rank": 4, "train_unembed": False}
training = tinker.ServiceClient().create_lora_training_client(**made)
row = tinker.Datum(
    model_input=tinker.ModelInput.from_ints([1, 2, 3]),
    loss_fn_inputs={"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 1.0]},
)
training.forward_backward([row], "cross_entropy").result()
training.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
path = training.save_weights_external("final").result().path
weights.download(tinker_path=path, output_dir="downloaded-2")
weights.build_hf_model(base_model=sys.argv[1], adapter_path="downloaded-2", output_path="merged")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder, with everything in it that a recipe asks the hub for."""
    folder = tmp_path_factory.mktemp("cookbook")
    nano.write_tokenizer(folder / BASE)
    nano.build_model().save_pretrained(folder / BASE)
    draw = random.Random(1)
    sums = [(draw.randint(0, 100), draw.randint(0, 100)) for _ in range(256)]
    _write(folder / "sums.jsonl", [{"messages": _lesson(x, y)} for x, y in sums])
    pairs = [_preference(x, y) for x, y in sums[:48]]
    _write(folder / "Anthropic/hh-rlhf/train.jsonl", pairs[:32])
    _write(folder / "Anthropic/hh-rlhf/test.jsonl", pairs[32:])
    return folder


def _lesson(x: int, y: int) -> list[dict[str, str]]:
    """As the cookbook's arithmetic environment asks."""
    turns = [("What is 4 + 5?", "9"), (f"What is {x} + {y}?", str(x + y))]
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def _preference(x: int, y: int) -> dict[str, str]:
    asked = f"\n\nHuman: What is {x} + {y}?\n\nAssistant: "
    return {"chosen": f"{asked}{x + y}", "rejected": f"{asked}I would rather not say."}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with served(folder, {}, model=BASE) as server:
        yield server


def _run(server: Served, folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [str(cookbook_python(VERSION)), *arguments],
        env={**client_environment(server), "HF_HOME": str(folder / "hub")},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _recipe(server: Served, folder: Path, name: str, **settings: Any) -> list[dict[str, Any]]:
    """The metrics that the recipe wrote, step by step."""
    log = folder / "logs" / name
    given = {"model_name": BASE, "log_path": log, "behavior_if_log_dir_exists": "resume"}
    given |= settings
    log = Path(given["log_path"])
    arguments = [f"{key}={value}" for key, value in given.items()]
    _run(server, folder, "-m", f"tinker_cookbook.recipes.{name}.train", *arguments)
    print((log / "metrics.jsonl").read_text())
    return [json.loads(line) for line in (log / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def lessons(server: Served, folder: Path) -> list[dict[str, Any]]:
    settings = {"dataset": "sums.jsonl", "max_length": 128, "batch_size": 16, "lora_rank": 16}
    rates = {"learning_rate": 3e-3, "save_every": 8}
    return _recipe(server, folder, "chat_sl", **settings, **rates)


@pytest.fixture(scope="module")
def trained(lessons: list[dict[str, Any]], folder: Path) -> str:
    """The path of the last state that the supervised recipe saved."""
    lines = (folder / "logs" / "chat_sl" / "checkpoints.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["000008", "final"]
    return str(json.loads(lines[-1])["state_path"])


@pytest.mark.timeout(1200)
def test_supervised_training(lessons: list[dict[str, Any]]) -> None:
    found = [step["train_mean_nll"] for step in lessons]
    assert len(found) == 16 and found[-1] < 0.25 * found[0], found


@pytest.mark.timeout(600)
def test_a_base_of_ours_is_named_by_its_tokenizers_folder(
    folder: Path, cache: Path, tmp_path: Path
) -> None:
    """The cookbook knows no name of ours; it loads the tokenizer of `model_name` by itself."""
    name = str(cache / "models" / "nano")
    with served(tmp_path, {}, model="nano") as server:
        settings = {"dataset": "sums.jsonl", "max_length": 128, "batch_size": 16, "max_steps": 2}
        more = {"learning_rate": 3e-3, "renderer_name": "role_colon", "log_path": tmp_path / "log"}
        steps = _recipe(server, folder, "chat_sl", model_name=name, **settings, **more)
    assert len(steps) == 2 and all(step["train_mean_nll"] > 0 for step in steps)


@pytest.mark.timeout(600)
def test_reinforcement_learning(server: Served, folder: Path, trained: str) -> None:
    """What was sampled and what is trained on are the same policy; rewards move the weights."""
    size = {"groups_per_batch": 8, "group_size": 8, "max_tokens": 16, "max_steps": 2}
    more = {"load_checkpoint_path": trained, "lora_rank": 16, "eval_every": 0, "save_every": 0}
    loss = {"loss_fn": "importance_sampling"}  # the default has no published formula
    steps = _recipe(server, folder, "math_rl", learning_rate=1e-4, **size, **more, **loss)[:2]
    assert all(abs(step["optim/kl_sample_train_v1"]) < 1e-3 for step in steps), steps
    assert 0 < steps[0]["env/all/format"] < 1 and steps[0]["grad_norm"] > 0.01, steps


@pytest.mark.timeout(600)
def test_preferences(server: Served, folder: Path, trained: str) -> None:
    """A custom loss against a frozen reference: at the start both are the same policy."""
    size = {"dataset": "hhh", "batch_size": 8, "max_length": 128, "max_steps": 4}
    more = {"load_checkpoint_path": trained, "learning_rate": 1e-4}
    steps = _recipe(server, folder, "preference.dpo", **size, **more)
    found = [step["dpo_loss"] for step in steps if "dpo_loss" in step]
    assert math.isclose(found[0], math.log(2), abs_tol=1e-3) and found[-1] < found[0], found


@pytest.mark.timeout(600)
def test_weights_come_back(server: Served, folder: Path, trained: str) -> None:
    _run(server, folder, "-c", _DOWNLOAD, trained, BASE)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(os.listdir(folder / "lora"))


@pytest.mark.timeout(600)
def test_weights_are_merged_into_a_tied_base(server: Served, folder: Path) -> None:
    """Without an adapter on its output layer, which is the input's too: the cookbook refuses it."""
    _run(server, folder, "-c", _MERGE, BASE)
    merged, base = (load_file(folder / of / "model.safetensors") for of in ("merged", BASE))
    assert merged.keys() == base.keys() and "lm_head.weight" not in base
    changed = {name for name in base if not torch.equal(merged[name], base[name])}
    assert changed == {name for name in base if "_proj" in name}
