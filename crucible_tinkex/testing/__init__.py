"""Fakes of the real shape, for tests of loops and sweeps by us and by users."""

from crucible_tinkex.testing.fake_service import (
    FakeBackend,
    FakeSampling,
    FakeService,
    FakeTraining,
    FakeWeights,
)

__all__ = ["FakeBackend", "FakeSampling", "FakeService", "FakeTraining", "FakeWeights"]
