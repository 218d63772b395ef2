"""Fakes of the real shape, for tests of loops and sweeps by us and by users."""

from crucible_tinkex.testing.fake_backend import Effect, Failure, FakeBackend
from crucible_tinkex.testing.fake_model import FakeWeights, batch_digest
from crucible_tinkex.testing.fake_service import FakeSampling, FakeService, FakeTraining

__all__ = [
    "Effect",
    "Failure",
    "FakeBackend",
    "FakeSampling",
    "FakeService",
    "FakeTraining",
    "FakeWeights",
    "batch_digest",
]
