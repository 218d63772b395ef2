"""What `test_sdk.py` runs in a process of its own, because the SDK leaves sockets open in its.

`python sdk_process.py CHECK BASE_URL API_KEY_FILE`
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_contract import ADAM, BATCH, check_training_service

from crucible_tinkex.client.resolved import ResolvedService, ServiceTransport
from crucible_tinkex.errors import AuthenticationError, ServiceError
from crucible_tinkex.protocol.wire import LoraConfig


async def contract(base_url: str, api_key_file: str) -> None:
    await check_training_service(ResolvedService(base_url, api_key_file, "sdk").connect())


def probability(logprobs: list[Any]) -> tuple[float, Sequence[Any], dict[str, float]]:
    value = math.fsum(float(np.exp(p).sum()) for p in logprobs)
    return -value, [-np.exp(p) for p in logprobs], {"mine:sum": value}


async def custom(base_url: str, api_key_file: str) -> None:
    """A custom loss gives the same by both transports."""
    transports: tuple[ServiceTransport, ...] = ("http", "sdk")
    found = []
    for transport in transports:
        service = ResolvedService(base_url, api_key_file, transport).connect()
        model = await service.create_training(base_model="nano", lora=LoraConfig(rank=4, seed=1))
        sent = []
        for _ in range(3):
            sent.append(model.forward_backward_custom(BATCH, probability))
            model.optim_step(ADAM)
        found.append([(await backward).metrics for backward in sent])
        await service.close()
    for ours, theirs in zip(*found, strict=True):
        for name in ("loss:sum", "mine:sum", "surrogate_loss:sum"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    assert found[0][2]["loss:sum"] < found[0][0]["loss:sum"]


async def refusals(base_url: str, api_key_file: str) -> None:
    wrong = Path(api_key_file).with_name("wrong")
    wrong.write_text("tml-wrong-key-000000000")
    wrong.chmod(0o600)
    service = ResolvedService(base_url, str(wrong), "sdk").connect()
    with pytest.raises(AuthenticationError) as caught:
        await service.create_training(base_model="nano", lora=LoraConfig(rank=4))
    assert "tml-wrong" not in str(caught.value)
    await service.close()
    service = ResolvedService(base_url, api_key_file, "sdk").connect()
    model = await service.create_training(base_model="nano", lora=LoraConfig(rank=4))
    with pytest.raises(ServiceError):
        await model.forward_backward(BATCH, loss_fn="no_such_loss")
    await service.close()


if __name__ == "__main__":
    checks = {f.__name__: f for f in (contract, custom, refusals)}
    asyncio.run(checks[sys.argv[1]](*sys.argv[2:]))
