from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from crucible_tinkex.telemetry.log.sequences import SequenceSet

NUMBERS = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 25)), max_size=60)


@given(added=NUMBERS, merged=NUMBERS)
def test_behaves_like_a_set(added: list[tuple[str, int]], merged: list[tuple[str, int]]) -> None:
    mine, model = SequenceSet(), set()
    for key in added:
        mine.add(*key)
        model.add(key)
    other = SequenceSet()
    for key in merged:
        other.add(*key)
    mine.update(other.to_json())
    model |= set(merged)
    for writer in "ab":
        assert [n for n in range(-1, 28) if (writer, n) in mine] == sorted(
            n for w, n in model if w == writer
        )
        spans = mine.to_json().get(writer, [])
        assert all(left[1] + 1 < right[0] for left, right in pairwise(spans))


def test_a_writer_without_gaps_costs_one_interval() -> None:
    numbers = SequenceSet()
    for seq in range(1, 10_001):
        numbers.add("w", seq)
    assert numbers.to_json() == {"w": [[1, 10_000]]}
