"""Every ordinal once: none skipped, none trained twice, over drops, crashes and resumes."""

import random

import pytest

from actors.ledger import Ledger


def test_ordinals_count_up() -> None:
    ledger = Ledger()
    assert [ledger.issue() for _ in range(4)] == [0, 1, 2, 3]
    assert ledger.pending == [0, 1, 2, 3]


def test_what_was_pending_is_issued_again_before_anything_new() -> None:
    ledger = Ledger()
    for _ in range(5):
        ledger.issue()
    ledger.train([3, 0])
    ledger.drop(2)
    resumed = Ledger.from_json(ledger.to_json())
    assert [resumed.issue() for _ in range(4)] == [1, 4, 5, 6]
    assert (resumed.trained, resumed.dropped) == (2, [2])


def test_a_resume_of_a_resume_keeps_what_was_not_issued_yet() -> None:
    ledger = Ledger()
    for _ in range(4):
        ledger.issue()
    once = Ledger.from_json(ledger.to_json())
    once.train([once.issue()])
    twice = Ledger.from_json(once.to_json())
    assert [twice.issue() for _ in range(4)] == [1, 2, 3, 4]


def test_an_ordinal_is_trained_or_dropped_once() -> None:
    """A second time, or without an issue, is an error and not a silent count."""
    ledger = Ledger()
    ordinal = ledger.issue()
    ledger.train([ordinal])
    for again in (lambda: ledger.train([ordinal]), lambda: ledger.drop(ordinal), lambda: ledger.drop(99)):
        with pytest.raises(ValueError):
            again()
    assert ledger.trained == 1 and ledger.dropped == []


def test_state_survives_json() -> None:
    """Between a save and a load nothing but `pending` moves: it becomes `unissued`."""
    ledger = Ledger(next_ordinal=9, pending=[7, 4], unissued=[5, 8], trained=3, dropped=[1, 6])
    assert Ledger.from_json(ledger.to_json()) == Ledger(9, [], [4, 5, 7, 8], 3, [1, 6])


@pytest.mark.parametrize("seed", range(20))
def test_every_ordinal_once_over_random_crashes(seed: int) -> None:
    """300 random events; a crash falls back to the last checkpoint and forgets what came after it. In the end each
    ordinal below the cursor is trained once, dropped once, or still in flight."""
    rng = random.Random(seed)
    ledger, saved = Ledger(), Ledger().to_json()
    trained: list[int] = []
    saved_trained: list[int] = []
    for _ in range(300):
        event = rng.choice(["issue", "issue", "issue", "train", "drop", "save", "crash"])
        if event == "issue":
            ledger.issue()
        elif event == "train" and len(ledger.pending) >= 2:
            batch = rng.sample(ledger.pending, 2)
            ledger.train(batch)
            trained += batch
        elif event == "drop" and ledger.pending:
            ledger.drop(rng.choice(ledger.pending))
        elif event == "save":
            saved, saved_trained = ledger.to_json(), list(trained)
        elif event == "crash":
            ledger, trained = Ledger.from_json(saved), list(saved_trained)
    seen = trained + ledger.dropped + ledger.pending + ledger.unissued
    assert sorted(seen) == list(range(ledger.next_ordinal))
    assert ledger.trained == len(trained)
