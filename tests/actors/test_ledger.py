"""Every slot of every step is trained once, over drops, crashes and resumes."""

import random

import pytest

from actors.ledger import Ledger
from rl.identity import Identity


def test_first_attempts_are_the_stream_in_order() -> None:
    ledger = Ledger(2)
    assert [ledger.issue(step, slot) for step in range(2) for slot in range(2)] == [0, 1, 2, 3]
    assert ledger.pending == {0, 1, 2, 3}


def test_a_dropped_group_gives_its_slot_the_next_attempt_and_changes_no_other() -> None:
    ledger = Ledger(2)
    first = ledger.issue(0, 1)
    ledger.drop(first)
    again = ledger.issue(0, 1)
    assert (Identity.of(again, 2), ledger.issue(0, 0)) == (Identity(0, 1, 1), 0)
    ledger.train([0, again])
    assert [ledger.issue(1, slot) for slot in range(2)] == [2, 3], "a later step starts with its first attempt"
    assert (ledger.trained, ledger.dropped) == (2, [1])


def test_what_was_pending_is_issued_again_as_the_same() -> None:
    ledger = Ledger(2)
    ordinals = [ledger.issue(step, slot) for step in range(2) for slot in range(2)]
    ledger.train(ordinals[:2])
    ledger.drop(ordinals[3])
    resumed = Ledger.from_json(ledger.to_json())
    assert resumed == Ledger(2, 1, {(1, 1): 1}, set(), [3])
    assert [resumed.issue(1, 0), resumed.issue(1, 1)] == [2, Identity(1, 1, 1).ordinal(2)]


@pytest.mark.parametrize(
    "wrong", [[0], [0, 0], [0, 3], [0, 2], [2, 3]], ids=["one", "twice", "another step", "not pending", "step ahead"]
)
def test_a_step_is_trained_on_one_pending_group_per_slot(wrong: list[int]) -> None:
    ledger = Ledger(2)
    for step, slot in ((0, 0), (0, 1), (1, 1)):
        ledger.issue(step, slot)
    with pytest.raises(ValueError, match="expected one pending group for each of"):
        ledger.train(wrong)
    assert ledger.trained == 0


def test_a_trained_step_is_not_issued_again() -> None:
    ledger = Ledger(1)
    ledger.train([ledger.issue(0, 0)])
    with pytest.raises(ValueError, match="step 0 is trained"):
        ledger.issue(0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_every_slot_once_over_random_crashes(seed: int) -> None:
    """A crash falls back to the last checkpoint and forgets what came after it; the run ends all the same."""
    rng, groups, steps = random.Random(seed), 3, 30
    ledger = Ledger(groups)
    saved, trained, saved_trained, crashes = ledger.to_json(), 0, 0, 0
    while ledger.steps < steps:
        pending = {}
        for slot in range(groups):
            while rng.random() < 0.2:
                ledger.drop(ledger.issue(ledger.steps, slot))
            pending[slot] = ledger.issue(ledger.steps, slot)
        if rng.random() < 0.3 and crashes < 50:
            ledger, trained, crashes = Ledger.from_json(saved), saved_trained, crashes + 1
            continue
        ledger.train(list(pending.values()))
        trained += groups
        if rng.random() < 0.5:
            saved, saved_trained = ledger.to_json(), trained
    assert ledger.trained == trained == groups * steps and crashes > 0
    assert not ledger.pending and not ledger.attempts
    assert len(set(ledger.dropped)) == len(ledger.dropped)
