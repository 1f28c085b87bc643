"""Step, slot and attempt, and the one number that carries them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.identity import Identity


@given(st.integers(1, 500), st.integers(0, 10**6), st.integers(0, 10**4), st.data())
def test_an_ordinal_is_one_to_one(groups: int, step: int, attempt: int, data: st.DataObject) -> None:
    identity = Identity(step, data.draw(st.integers(0, groups - 1)), attempt)
    assert Identity.of(identity.ordinal(groups), groups) == identity


def test_first_attempts_are_the_stream_in_order() -> None:
    assert [Identity(step, slot).ordinal(3) for step in range(2) for slot in range(3)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("identity", [Identity(0, 3), Identity(0, -1), Identity(-1, 0), Identity(0, 0, -1)])
def test_what_is_no_group_is_refused(identity: Identity) -> None:
    with pytest.raises(ValueError, match="expected slot 0 to 2, step and attempt 0 or more"):
        identity.ordinal(3)
